"""`wagle attribute` and `wagle unlearn` do what `WagleTrainer` does with the same arguments."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer import WagleConfig, WagleTrainer, WeightMask
from wagle_trainer.data import QAFormat


@pytest.fixture(scope="module")
def by_hand(files, tmp_path_factory):
    """by_hand(changes) -> the trainer that the commands should make of `run.yaml`."""
    run = yaml.safe_load(Path(files.run).read_text())
    for name in ("model_name_or_path", "forget_file", "retain_file", "evaluation_samples", "controls"):
        run.pop(name)

    def make(**changes):
        tokenizer = AutoTokenizer.from_pretrained(files.model)
        forget = load_dataset("json", data_files=files.forget, split="train")
        return WagleTrainer(
            AutoModelForCausalLM.from_pretrained(files.model),
            WagleConfig(str(tmp_path_factory.mktemp("by_hand")), **run | changes),
            forget_dataset=QAFormat.for_tokenizer(tokenizer).dataset(forget),
            retain_dataset=load_dataset("csv", data_files=files.retain, split="train"),
            processing_class=tokenizer,
        )

    return make


def test_attribute(files, wagle, by_hand, tmp_path):
    code, out, err = wagle(
        "attribute", "--config", files.run, "--density", "0.2", "--output_dir", tmp_path / "mask", "--json"
    )
    assert code == 0, err
    mask, expected = WeightMask.from_pretrained(tmp_path / "mask"), by_hand(density=0.2).compute_mask()
    assert mask == expected
    result = json.loads(out)
    assert (result["digest"], result["summary"]) == (mask.digest, mask.summary())


def test_unlearn(files, wagle, by_hand, tmp_path):
    code, out, err = wagle("unlearn", "--config", files.run, "--output_dir", tmp_path / "out")
    assert code == 0, err
    assert "'train_loss'" in err  # the Trainer prints its logs
    trainer = by_hand()
    trainer.train()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
    assert WeightMask.from_pretrained(tmp_path / "out", model=model) == trainer.mask
    assert out.splitlines()[:2] == [f"output_dir: {tmp_path / 'out'}", "steps: 2"]
    assert f"mask_digest: {trainer.mask.digest}" in out
    assert f"Weight mask {trainer.mask.digest[:12]}: {trainer.mask.num_selected:,} of " in err
    assert "Tokenizing train dataset" not in err  # the one row that SFTTrainer gets
    assert "## Unlearning" in (tmp_path / "out" / "README.md").read_text()


def test_a_stopped_run_goes_on_from_its_last_checkpoint(files, wagle, weights_of, tmp_path):
    run = ["unlearn", "--config", files.run, "--save_strategy", "steps", "--save_steps", "1", "--max_steps"]
    results = []
    for folder, steps in (("stopped", 1), ("stopped", 3), ("whole", 3)):
        resume = ["--resume_from_checkpoint", "true"] if results else []
        output = ["--output_dir", tmp_path / folder, "--lr_scheduler_type", "constant"]
        code, _, err = wagle(*run, steps, *output, *(resume if folder == "stopped" else []))
        assert code == 0, err
        results.append(weights_of(AutoModelForCausalLM.from_pretrained(tmp_path / folder)))
    assert all(torch.equal(results[1][name], weight) for name, weight in results[2].items())
    assert not all(torch.equal(results[0][name], weight) for name, weight in results[2].items())


def test_unlearn_with_lora(files, wagle, tmp_path):
    lora = ["--attribution", "none", "--use_peft", "--lora_target_modules", "wagle", "--lora_modules", "2"]
    code, out, err = wagle("unlearn", "--config", files.run, *lora, "--output_dir", tmp_path / "out", "--json")
    assert code == 0, err
    modules = json.loads(out)["lora_modules"]
    assert len(modules) == 2
    assert "LoRA adapts 2 of 14 Linear modules, chosen by the score 'wagle'" in err
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(files.model), tmp_path / "out")
    names = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert {name.removeprefix("base_model.model.") for name in names} == set(modules)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--densty", "0.5"], 2, "unrecognized arguments: --densty 0.5"),
        (["--density", "1.5"], 1, "density must be in (0, 1], got 1.5"),
        (["--dataset_name", "fictional"], 1, "Give either --dataset_name, or --forget_file and --retain_file"),
        (["--forget_file", "none.csv"], 1, "There is no file none.csv."),
        (["--model_name_or_path", "/none"], 1, "'/none' could not be loaded"),
        (["--mask_path", "/none"], 1, "'/none' is neither a folder with a saved mask"),
    ],
)
def test_refused(files, wagle, tmp_path, arguments, code, message):
    got, out, err = wagle("unlearn", "--config", files.run, "--output_dir", tmp_path / "out", *arguments)
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_refused_before_the_data(files, wagle, tmp_path):
    (tmp_path / "wrong.yaml").write_text("densty: 0.5\n")
    assert "options that are unknown: densty" in wagle("attribute", "--config", tmp_path / "wrong.yaml")[2]
    code, _, err = wagle("attribute", "--dataset_name", "fictional")
    assert code == 2
    assert "required: --model_name_or_path" in err
    code, _, err = wagle("attribute", "--model_name_or_path", files.model, "--forget_file", files.forget)
    assert code == 1
    assert "--forget_file and --retain_file, both, or --dataset_name" in err
    (tmp_path / "broken.yaml").write_text("density: [\n")
    assert (
        "configuration file is no YAML: while parsing" in wagle("attribute", "--config", tmp_path / "broken.yaml")[2]
    )
    (tmp_path / "sets.csv").write_text("question,answer\nWhen?,\n")
    err = wagle("attribute", "--config", files.run, "--forget_file", tmp_path / "sets.csv")[2]
    assert "sets.csv: Column 'answer' must hold one string per row, but row 0 holds nothing. Fix" in err
    (tmp_path / "sets.xlsx").write_text("")
    sets = ["--forget_file", tmp_path / "sets.xlsx", "--retain_file", files.retain]
    assert "known are .json, .jsonl" in wagle("attribute", "--model_name_or_path", files.model, *sets)[2]


def test_help_fits_two_screens(wagle):
    code, out, _ = wagle("unlearn", "--help")
    assert code == 0
    assert len(out.splitlines()) <= 80
    assert max(map(len, out.splitlines())) <= 125
    for option in ("--forget_file", "--loss_type", "--density", "--learning_rate", "--config", "--help-all"):
        assert f"  {option}" in out
    assert "--adam_beta1" not in out
    code, out, _ = wagle("unlearn", "--help-all")
    assert code == 0
    assert "--adam_beta1" in out and "--density" in out


def test_options_that_help_shows_exist(monkeypatch):
    from wagle_trainer.cli import training

    seen = []
    monkeypatch.setattr(training._TrainingParser, "parse_args_and_config", lambda self, *a, **k: seen.append(self))
    with pytest.raises(TypeError):  # nothing was parsed
        training.parse_training("unlearn", "", "", [], run=None, show=None)
    known = {action.dest for action in seen[0]._actions} | {"config", "help-all"}
    shown = {name for options in training.SHOWN.values() for name in options}
    assert shown <= known


def test_a_run_writes_the_file_that_repeats_it(files, wagle, tmp_path):
    secrets = ["--hub_token", "hf_secretsecret", "--run_name", "https://me:pw@host/x"]
    code, out, err = wagle(
        *("unlearn", "--config", files.run, "--density", "0.07", "--loss_kwargs", '{"beta": 0.2}', *secrets),
        *("--output_dir", tmp_path / "first", "--json"),
    )
    assert code == 0, err
    written = (tmp_path / "first" / "config.yaml").read_text()
    assert "secret" not in written.replace("secrets", "") and "pw@" not in written
    assert "hub_token, run_name" in written or "run_name, hub_token" in written
    values = yaml.safe_load(written)
    assert (float(values["density"]), values["max_steps"]) == (0.07, 2)
    assert "json" not in values and "controls" not in values
    code, again, err = wagle(
        *("unlearn", "--config", tmp_path / "first" / "config.yaml", "--output_dir", tmp_path / "second", "--json")
    )
    assert code == 0, err
    first, second = json.loads(out), json.loads(again)
    assert first.pop("output_dir") != second.pop("output_dir")
    assert first == second
    repeated = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert repeated | {"output_dir": values["output_dir"]} == values
