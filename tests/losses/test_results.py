"""The committed table of benchmarks/objectives.py: every objective with every mask, and each does what it aims at."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from wagle_trainer.data import fictional_tokenizer
from wagle_trainer.losses import get_loss, list_losses

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = [name for name in list_losses() if get_loss(name).__module__.startswith("wagle_trainer.")]
DO_NOT_AIM_AT_FORGETTING = {"finetune", "l1_sparse"}


@pytest.fixture(scope="module")
def rows():
    return {
        (row["objective"], row["weights"]): row
        for row in json.loads((BENCHMARKS / "results" / "objectives.json").read_text())["rows"]
    }


def test_every_objective_with_every_mask(rows):
    expected = {(name, weights) for name in NAMES for weights in ("dense", "wagle", "random")}
    assert set(rows) == expected | {("none", "before")}


@pytest.mark.parametrize("name", sorted(set(NAMES) - DO_NOT_AIM_AT_FORGETTING))
def test_the_forget_answers_become_less_likely(name, rows):
    """By more than training on the retain set alone does."""
    for weights in ("dense", "wagle"):
        without = rows["finetune", weights]["forget probability"]
        assert rows[name, weights]["forget probability"] < without - 0.05, weights


def test_the_script_runs(tmp_path, monkeypatch, make_llama):
    """On a tiny model that knows nothing, for a step or two."""
    folder, output = tmp_path / "small-llama-full-0", tmp_path / "out.json"
    tokenizer = fictional_tokenizer()
    make_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {"--models": tmp_path, "--output": output, "--epochs": 0.2, "--objectives": "altpo"}
    monkeypatch.setattr(sys, "argv", ["objectives.py", *(str(part) for pair in options.items() for part in pair)])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    runpy.run_path(str(BENCHMARKS / "objectives.py"), run_name="__main__")
    result = json.loads(output.read_text())
    assert [row["weights"] for row in result["rows"]] == ["before", "dense", "wagle", "random"]
    assert all(0 <= row[f"{kind} probability"] <= 1 for row in result["rows"] for kind in ("forget", "retain"))
