"""TOFU's truth ratio: how much likelier wrong answers are than the true one (arXiv 2401.06121, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import Floats, answers_with_options

Aggregation = Literal["closer_to_1_better", "true_better"]


def log_truth_ratio(correct: ArrayLike, wrong: Sequence[ArrayLike], *, epsilon: float = 0.0) -> Floats:
    """Logarithm of the truth ratio of each example: mean over the wrong answers minus the correct one.

    Args:
        correct: mean log-probabilities of the correct answers, (examples,).
        wrong: for each example the mean log-probabilities of its wrong answers; their number may differ.
        epsilon: added to the correct answer's probability; OpenUnlearning's code has 1e-10.

    Returns:
        (examples,), finite; above zero where the model finds the wrong answers likelier.

    Raises:
        ValueError: an argument is empty or not finite, or the two differ in length.
    """
    right, options = answers_with_options(correct, wrong)
    below = right if epsilon == 0 else np.logaddexp(right, np.log(epsilon))
    return np.array([others.mean() - p for p, others in zip(below, options, strict=True)])


@register_metric(
    "truth_ratio",
    inputs={
        "predictions": ("number", "mean log-probability per token of each true (paraphrased) answer, in nats"),
        "references": ("numbers", "for each of them those of its wrong answers"),
    },
    range=SHARE,
    source=citations.TOFU,
)
def truth_ratio(correct: ArrayLike, wrong: Sequence[ArrayLike], *, aggregation: Aggregation) -> float:
    """Truth ratio r = exp(mean over wrong answers of their mean log-probability) / exp(that of the correct answer).

    So the wrong answers count by their geometric mean, as in the code of TOFU and of OpenUnlearning; TOFU's paper prints
    the arithmetic mean of their probabilities.

    Args:
        correct: mean log-probabilities of the correct answers, (examples,).
        wrong: for each example the mean log-probabilities of its wrong answers; their number may differ.
        aggregation: "closer_to_1_better", the mean of min(r, 1 / r): on a forget set, where a model that knows nothing
            finds true and false alike; or "true_better", the mean of max(0, 1 - r), on all others.

    Returns:
        A number in [0, 1], higher is better.

    Raises:
        ValueError: an argument is empty or not finite, the two differ in length, or the aggregation is unknown.
    """
    log_ratios = log_truth_ratio(correct, wrong)
    if aggregation == "closer_to_1_better":
        return float(np.exp(-np.abs(log_ratios)).mean())
    if aggregation == "true_better":
        return float(-np.expm1(np.minimum(log_ratios, 0)).mean())
    raise ValueError(f"Unknown aggregation {aggregation!r}: use 'closer_to_1_better' or 'true_better'.")
