"""What a patch costs: the measurements of benchmarks/other_knowledge.py and words_elsewhere.py, and untie.py."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from wagle_trainer.data.fictional.speakers import speakers_rows, speakers_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bare_names(monkeypatch):
    """Benchmarks and recipes import each other by their bare names."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture(scope="module")
def tokenizer():
    return speakers_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def test_perplexity_is_that_of_each_text_by_itself(model, tokenizer):
    bench = SimpleNamespace(model=model, task=SimpleNamespace(tokenizer=tokenizer))
    total, tokens = 0.0, 0
    for row in speakers_rows("general"):
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    found = importlib.import_module("other_knowledge").perplexity(bench)
    assert found == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_runs_that_failed_have_no_part_in_the_means():
    rows = [
        {
            "score": "snip",
            "density": 1e-3,
            "learning_rate": 0.1,
            "seed": seed,
            "words_retained": False,
            "task": "facts",
        }
        for seed in (0, 1, 2)
    ]
    rows[0] |= {"failed": "the loss is nan"}
    for row, value in zip(rows[1:], (0.25, 0.5), strict=True):
        row |= dict.fromkeys(("forget", "held_out", "forget_repeated", "retain", "other_facts", "perplexity"), value)
    words = importlib.import_module("words_elsewhere").table(rows)[1]
    assert words[4:] == ["0.375"] * 4 + ["-"] * 4
    assert importlib.import_module("other_knowledge").table(rows)[1][5:] == ["0.375"] * 3


def test_an_untied_model_computes_the_same(model, tokenizer, tmp_path, monkeypatch):
    untie = importlib.import_module("untie")
    tied, untied = tmp_path / "tied", tmp_path / "untied"
    model.save_pretrained(tied)
    tokenizer.save_pretrained(tied)
    monkeypatch.setattr("sys.argv", ["untie.py", str(tied), str(untied)])
    untie.main()
    found = AutoModelForCausalLM.from_pretrained(untied)
    assert found.lm_head.weight is not found.model.embed_tokens.weight
    ids = torch.arange(8)[None]
    torch.testing.assert_close(found(ids).logits, model(ids).logits, rtol=0, atol=0)
    monkeypatch.setattr("sys.argv", ["untie.py", str(untied), str(tmp_path / "again")])
    with pytest.raises(SystemExit, match="nothing to untie"):
        untie.main()
