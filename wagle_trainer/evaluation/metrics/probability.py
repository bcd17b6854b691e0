"""How likely a model finds true answers, alone and beside wrong ones (TOFU, arXiv 2401.06121, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import Floats, answers_with_options, vector


def _of_answer(response: Any) -> tuple[float] | None:
    return None if response.score is None else (response.score.mean_log_prob,)


@register_metric(
    "answer_probability",
    inputs={"predictions": ("number", "mean log-probability per token of each answer, in nats")},
    range=SHARE,
    more_known="higher",
    of_response=_of_answer,
    source=citations.TOFU,
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
    right, options = answers_with_options(correct, wrong)
    more = [] if epsilon == 0 else [np.log(epsilon)]
    return np.array([np.exp(p - logsumexp([p, *others, *more])) for p, others in zip(right, options, strict=True)])
