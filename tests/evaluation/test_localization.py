"""Localization metrics against counting by hand and by brute force."""

import numpy as np
import pytest

from wagle_trainer.evaluation.metrics.localization import localization_auc, localization_precision


def test_precision_counts_selected_true_weights():
    true, selected = [1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0, 0, 0]
    assert localization_precision(selected, true) == 1 / 4
    assert localization_precision(true, selected) == 1 / 2
    assert localization_precision(true, true) == 1


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    true = rng.random(60) < 0.3
    scores = rng.integers(0, 8, 60).astype(float)  # with ties
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in scores[true] for y in scores[~true]]
    assert localization_auc(scores, true) == pytest.approx(sum(pairs) / len(pairs))
    assert localization_auc(true.astype(float), true) == 1


def test_refuses():
    with pytest.raises(ValueError, match="No weight is selected"):
        localization_precision([False, False], [True, False])
    with pytest.raises(ValueError, match="belong together"):
        localization_precision([True], [True, False])
    with pytest.raises(ValueError, match=r"scores\[1\] is not finite"):
        localization_auc([1.0, float("nan"), 0.0], [1, 0, 0])
    with pytest.raises(ValueError, match="0 of 3 weights are true"):
        localization_auc([1.0, 2.0, 0.0], [0, 0, 0])
