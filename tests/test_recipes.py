"""Configurations that are handed out can be read by what they are for; the quickstart, and attacks on its model."""

import importlib
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer import WeightMask
from wagle_trainer.data import fictional_tokenizer, load_tofu_evaluation
from wagle_trainer.evaluation import load_results, run_attacks

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.mixed_precision == "bf16"
    assert config.num_processes == 8


def test_mask_without_training(make_llama, make_word_tokenizer, tmp_path, monkeypatch, capsys):
    make_llama().save_pretrained(tmp_path / "model")
    make_word_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.syspath_prepend(RECIPES)
    command = f"attribute.py --model_name_or_path {tmp_path}/model --style plain --density 0.1 --use_cpu"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--output_dir", str(tmp_path / "mask")])
    importlib.import_module("attribute").main()
    mask = WeightMask.from_pretrained(tmp_path / "mask", model=make_llama())
    assert mask.num_selected == int(0.1 * mask.num_weights)
    assert f"--mask_path {tmp_path / 'mask'}" in capsys.readouterr().out


@pytest.mark.slow
def test_attacks_on_the_quickstart_model(one_thread, make_llama, tmp_path, monkeypatch):
    """The recipe without its controls, as its configuration says, and then relearning and quantisation."""
    monkeypatch.syspath_prepend(RECIPES)
    config, out = RECIPES / "configs" / "fictional_npo.yaml", tmp_path / "out"
    command = (
        f"tofu_npo.py --config {config} --output_dir {out} --use_cpu --controls wagle"  # no other than the method
    )
    monkeypatch.setattr(sys, "argv", command.split())
    # As if the second model were trained already, which takes as long as the first and shows nothing more.
    retrained, tokenizer = tmp_path / "models" / "small-llama-retain90-0", fictional_tokenizer()
    make_llama(vocab_size=len(tokenizer)).save_pretrained(retrained)
    tokenizer.save_pretrained(retrained)
    importlib.import_module("tofu_npo").main()
    results = load_results(out / "results.json")
    assert list(results) == ["before", "after, wagle mask 0.05", "retrained without the forget set"]
    folders = (tmp_path / "models" / "small-llama-full-0", out / "wagle")
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    attacks = run_attacks(
        before,
        after,
        AutoTokenizer.from_pretrained(out / "wagle"),
        load_tofu_evaluation("fictional", "forget10")["forget"],
        ["relearning", "quantization"],
        options={"relearning": {"learning_rate": 1e-3, "steps": [5, 20]}},
        progress=False,
    )
    for attack in attacks.values():
        assert attack["before"] > 0.9
        assert attack["baseline"] < 0.3
    assert [point["x"] for point in attacks["relearning"]["points"]] == [0, 5, 20]
    assert attacks["relearning"]["recovered"] > 0.2
    assert attacks["quantization"]["recovered"] < 0.1
