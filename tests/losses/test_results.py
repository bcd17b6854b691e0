"""The committed table of benchmarks/objectives.py: every objective with every mask, and each does what it aims at."""

import json
from pathlib import Path

import pytest

from wagle_trainer.losses import get_loss, list_losses

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "objectives.json"
NAMES = [name for name in list_losses() if get_loss(name).__module__.startswith("wagle_trainer.")]
DO_NOT_AIM_AT_FORGETTING = {"finetune", "l1_sparse"}


@pytest.fixture(scope="module")
def rows():
    return {(row["objective"], row["weights"]): row for row in json.loads(RESULTS.read_text())["rows"]}


def test_every_objective_with_every_mask(rows):
    expected = {(name, weights) for name in NAMES for weights in ("dense", "wagle", "random")}
    assert set(rows) == expected | {("none", "before")}


@pytest.mark.parametrize("name", sorted(set(NAMES) - DO_NOT_AIM_AT_FORGETTING))
def test_the_forget_answers_become_less_likely(name, rows):
    """By more than training on the retain set alone does."""
    for weights in ("dense", "wagle"):
        without = rows["finetune", weights]["forget probability"]
        assert rows[name, weights]["forget probability"] < without - 0.05, weights
