"""How likely a model finds true answers, alone and beside wrong ones (TOFU, arXiv 2401.06121, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from wagle_trainer.evaluation.metrics import sources
from wagle_trainer.evaluation.metrics.metric import SHARE, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import Floats, same_length, vector

Aggregation = Literal["closer_to_1_better", "true_better"]


def _of_answer(response: Any) -> tuple[float] | None:
    return None if response.score is None else (response.score.mean_log_prob,)


@register_metric(
    "answer_probability",
    inputs={"predictions": ("number", "mean log-probability per token of each answer, in nats")},
    range=SHARE,
    more_known="higher",
    of_response=_of_answer,
    source=sources.TOFU,
)
def answer_probability(mean_log_probs: ArrayLike) -> Floats:
    """exp(mean log-probability per token): the answer's probability, normalised for its length.

    Args:
        mean_log_probs: (examples,).

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: `mean_log_probs` is empty or not finite.
    """
    return np.exp(vector(mean_log_probs, "mean_log_probs"))


def perplexity(mean_log_prob: ArrayLike) -> Floats:
    """exp(-mean log-probability per token), at least 1 and at most the largest float.

    A model that finds a text impossible (less than -709 nats per token) has that one, since results hold finite numbers.

    Args:
        mean_log_prob: in nats, of any shape.
    """
    return np.exp(np.minimum(-np.asarray(mean_log_prob, dtype=np.float64), np.log(np.finfo(np.float64).max)))


def probability_with_options(correct: ArrayLike, wrong: Sequence[ArrayLike], *, epsilon: float = 0.0) -> Floats:
    """p / (p + sum of the wrong answers' p), with p the length-normalised probabilities.

    Args:
        correct: mean log-probabilities of the correct answers, (examples,).
        wrong: for each example the mean log-probabilities of its wrong answers; their number may differ.
        epsilon: added to the denominator; OpenUnlearning's code has 1e-10.

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: an argument is empty or not finite, or the two differ in length.
    """
    right, options = _answers(correct, wrong)
    more = [] if epsilon == 0 else [np.log(epsilon)]
    return np.array([np.exp(p - logsumexp([p, *others, *more])) for p, others in zip(right, options, strict=True)])


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
    right, options = _answers(correct, wrong)
    below = right if epsilon == 0 else np.logaddexp(right, np.log(epsilon))
    return np.array([others.mean() - p for p, others in zip(below, options, strict=True)])


@register_metric(
    "truth_ratio",
    inputs={
        "predictions": ("number", "mean log-probability per token of each true (paraphrased) answer, in nats"),
        "references": ("numbers", "for each of them those of its wrong answers"),
    },
    range=SHARE,
    source=sources.TOFU,
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


def _answers(correct: ArrayLike, wrong: Sequence[ArrayLike]) -> tuple[Floats, list[Floats]]:
    right = vector(correct, "correct")
    same_length(correct=right, wrong=wrong)
    return right, [vector(options, f"wrong[{index}]") for index, options in enumerate(wrong)]
