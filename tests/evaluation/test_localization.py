"""Localization metrics against counting by hand and by brute force."""

import numpy as np
import pytest
import torch

from wagle_trainer import WeightMask
from wagle_trainer.evaluation.metrics.localization import (
    localization_auc,
    localization_lift,
    localization_precision,
)


def mask(*bits):
    return WeightMask.from_dict({"a": torch.tensor(bits, dtype=torch.bool)})


def test_precision_and_lift():
    truth = mask(1, 1, 0, 0, 0, 0, 0, 0)
    found = mask(1, 0, 1, 1, 1, 0, 0, 0)
    assert localization_precision(found, truth) == 1 / 4
    assert localization_lift(found, truth) == 1  # chance: 2 of 8
    assert localization_lift(truth, truth) == 4
    assert localization_precision(truth, found) == 1 / 2


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    bits = torch.tensor(rng.random(60) < 0.3)
    scores = torch.tensor(rng.integers(0, 8, 60), dtype=torch.float32)  # with ties
    truth = WeightMask.from_dict({"a": bits[:40].reshape(5, 8), "b": bits[40:]})
    found = localization_auc({"b": scores[40:], "a": scores[:40].reshape(5, 8)}, truth)
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in scores[bits].tolist() for y in scores[~bits].tolist()]
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_refuses():
    none, some = mask(0, 0, 0), mask(1, 0, 0)
    with pytest.raises(ValueError, match="selects no weight"):
        localization_precision(none, some)
    with pytest.raises(ValueError, match="nothing to find"):
        localization_lift(some, none)
    with pytest.raises(ValueError, match="names or shapes differ"):
        localization_auc({"b": torch.zeros(3)}, some)
    with pytest.raises(ValueError, match="not finite"):
        localization_auc({"a": torch.tensor([1.0, float("nan"), 0.0])}, some)
    with pytest.raises(ValueError, match="0 of 3 weights are true"):
        localization_auc({"a": torch.zeros(3)}, none)
