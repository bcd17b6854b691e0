"""Every configuration for a paper's model: it parses, and model, data and objective go together on a tiny one of its family."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recipe import load_format, load_model, parse_arguments
from transformers import MistralConfig, MistralForCausalLM

from wagle_trainer import WagleTrainer

pytestmark = pytest.mark.slow

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
# configuration -> task, family
PAPER = {
    "llama_2_7b": ("tofu", "llama"),
    "llama_2_7b_grad_diff": ("tofu", "llama"),
    "llama_2_7b_po": ("tofu", "llama"),
    "llama_3.2_1b": ("tofu", "chat"),
    "zephyr_7b": ("wmdp", "mistral"),
    "zephyr_7b_grad_diff": ("wmdp", "mistral"),
    "llama_2_7b_copyright": ("copyright", "llama"),
    "llama_2_7b_muse_books": ("copyright", "llama"),
    "llama_2_7b_muse_news": ("copyright", "llama"),
    "llama_2_7b_detox": ("detox", "llama"),
}
# gamma, density, learning rate and objective as the paper and its code have them; None: open there.
STATED = {
    "llama_2_7b": (1e-6, 0.95, 1e-5, "npo"),
    "llama_2_7b_grad_diff": (1e-6, 0.95, 7e-6, "grad_diff"),
    "llama_2_7b_po": (1e-6, 0.8, 2e-5, "po"),
    "zephyr_7b": (1e-6, 0.6, 1e-5, "npo"),
    "zephyr_7b_grad_diff": (1e-6, 0.4, 5e-6, "grad_diff"),
    "llama_2_7b_copyright": (1e4, None, None, "po"),
    "llama_2_7b_detox": (1e6, None, None, "po"),
}


@pytest.fixture(scope="module")
def models(make_llama, make_word_tokenizer, tmp_path_factory):
    """family -> folder of a tiny model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 57, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 64, "max_position_embeddings": 128}
    mistral = MistralForCausalLM(MistralConfig(**sizes, **heads, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    found = {}
    for family, model in (("llama", make_llama()), ("mistral", mistral), ("chat", make_llama())):
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        tokenizer = make_word_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE if family == "chat" else None
        tokenizer.save_pretrained(folder)
        found[family] = str(folder)
    return found


def words(count, start=0):
    return " ".join(f"w{(start + 7 * place) % 52}" for place in range(count))


@pytest.fixture
def data(tmp_path, muse_folder):
    """task -> the arguments that put small data in place of the paper's."""
    (tmp_path / "book.txt").write_text(words(90), encoding="utf-8")
    (tmp_path / "other.txt").write_text(words(90, 1), encoding="utf-8")
    pairs = [{"prompt": words(3, n), "chosen": " w1 w2", "rejected": " w3 w4"} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    texts = [{"text": words(12, n)} for n in range(4)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    short = "--passage_tokens 20 --passages 4 --prompt_tokens 5 --continuation_tokens 10"
    return {
        "tofu": "--dataset_name fictional",
        "wmdp": "--dataset_name fictional --corpus_rows 4 --harness false",
        "copyright": f"--forget_file {tmp_path}/book.txt --retain_file {tmp_path}/other.txt {short}",
        "muse": f"--dataset_name {muse_folder} --passage_tokens 12 --passages 4 --prompt_tokens 5",
        "detox": f"--forget_file {tmp_path}/pairs.jsonl --retain_file {tmp_path}/text.jsonl --toxicity words",
    }


@pytest.mark.parametrize("name", PAPER)
def test_model_data_and_objective_go_together(name, models, data, tmp_path, monkeypatch):
    task_name, family = PAPER[name]
    small = (
        f"--model_name_or_path {models[family]} --dtype float32 --bf16 false --use_cpu true --max_steps 1 --max_length 64 "
        f"--output_dir {tmp_path}/out --report_to none --disable_tqdm true --save_strategy no"
    )
    style = "" if family == "chat" else "--style plain"
    argv = f"recipe --config {CONFIGS}/{name}.yaml {small} {style} {data['muse' if 'muse' in name else task_name]}"
    monkeypatch.setattr(sys, "argv", argv.split())
    task, args, model_args = parse_arguments(task_name, "npo")
    gamma, density, rate, loss = STATED.get(name, (None, None, None, args.loss_type))
    assert args.loss_type == loss
    assert gamma is None or args.attribution_gamma == gamma
    assert density is None or args.density == density
    assert rate is None or args.learning_rate == rate
    if loss == "npo" and name in STATED:
        assert args.loss_kwargs == {"beta": 0.1, "length_normalized": True}
    qa = load_format(task, model_args)
    forget, retain = task.training_sets(qa)
    args.attribution_samples = 2
    model = load_model(model_args.model_name_or_path, model_args, args.device)
    assert type(model).__name__ == ("MistralForCausalLM" if family == "mistral" else "LlamaForCausalLM")
    trainer = WagleTrainer(model, args, forget_dataset=forget, retain_dataset=retain, processing_class=qa.tokenizer)
    assert math.isfinite(trainer.train().training_loss)
    assert trainer.mask is not None
    assert trainer.mask.num_selected == int(args.density * trainer.mask.num_weights)


def test_every_configuration_for_a_paper_is_tested():
    others = {"compare", "fictional", "patch", "people"}
    found = {path.stem for path in CONFIGS.glob("*.yaml") if not others & set(path.stem.split("_"))}
    assert found == set(PAPER)


@pytest.mark.parametrize("name", STATED)
def test_every_line_has_its_source(name):
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert all(any(f"[{source}" in line for source in ("paper", "code", "ours")) for line in settings)
    assert len(settings) == len(yaml.safe_load("\n".join(lines)))
