"""Whether a score finds the weights that store facts, where it is known which those are (LACUNA, arXiv 2607.02513)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, Entry, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import same_length, vector

TRUE_WEIGHTS: tuple[Entry, str] = ("flag", "for each weight whether the facts were taught to it")


@register_metric(
    "localization_precision",
    inputs={"predictions": ("flag", "for each weight whether a score selected it"), "references": TRUE_WEIGHTS},
    range=SHARE,
    source=citations.LACUNA,
)
def localization_precision(selected: ArrayLike, true: ArrayLike) -> float:
    """Share of the selected weights that are among the true ones.

    The density of the true weights is the precision of chance; precision over that density is the lift.

    Args:
        selected: bool, (weights,).
        true: bool, (weights,).

    Raises:
        ValueError: no weight is selected; the lengths differ.
    """
    found, truth = np.asarray(selected, dtype=bool).ravel(), np.asarray(true, dtype=bool).ravel()
    same_length(selected=found, true=truth)
    if not found.any():
        raise ValueError("No weight is selected: the precision has no value.")
    return float(truth[found].mean())


@register_metric(
    "localization_auc",
    inputs={"predictions": ("number", "the score of each weight"), "references": TRUE_WEIGHTS},
    range=SHARE,
    source=citations.LACUNA,
)
def localization_auc(scores: ArrayLike, true: ArrayLike) -> float:
    """Probability that a true weight has a higher score than another one; ties count half.

    It is the area under the ROC curve (the Mann-Whitney statistic); 0.5 is chance.

    Args:
        scores: finite, (weights,).
        true: bool, (weights,).

    Raises:
        ValueError: a score is not finite; the lengths differ; all weights are true, or none is.
    """
    values, truth = vector(np.ravel(np.asarray(scores)), "scores"), np.asarray(true, dtype=bool).ravel()
    same_length(scores=values, true=truth)
    number = int(truth.sum())
    if number in (0, len(truth)):
        raise ValueError(f"{number} of {len(truth)} weights are true: there is nothing to tell apart.")
    ranks = rankdata(values)
    return float((ranks[truth].sum() - number * (number + 1) / 2) / (number * (len(truth) - number)))
