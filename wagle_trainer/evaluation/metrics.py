"""The numbers of OpenUnlearning's TOFU suite (arXiv 2506.12618, after TOFU, arXiv 2401.06121) as plain functions.

They take what a model gave, log-probabilities or text, and know no model. Log-probabilities are natural logarithms,
averaged over the tokens of an answer; everything stays in log space until the end, so that a model which finds an
answer impossible (probability 1e-400) still gets a finite number. OpenUnlearning adds 1e-10 to denominators instead;
the two agree as long as probabilities are well above that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from scipy.stats import hmean, ks_2samp

Floats = NDArray[np.float64]
Aggregation = Literal["closer_to_1_better", "true_better"]


def answer_probability(mean_log_probs: ArrayLike) -> Floats:
    """exp(mean log-probability per token): the answer's probability, normalised for its length.

    Args:
        mean_log_probs: (examples,).

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: `mean_log_probs` is empty or not finite.
    """
    return np.exp(_vector(mean_log_probs, "mean_log_probs"))


def probability_with_options(correct: ArrayLike, wrong: Sequence[ArrayLike]) -> Floats:
    """p / (p + sum of the wrong answers' p), with p the length-normalised probabilities.

    Args:
        correct: mean log-probabilities of the correct answers, (examples,).
        wrong: for each example the mean log-probabilities of its wrong answers; their number may differ.

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: an argument is empty or not finite, or the two differ in length.
    """
    right, options = _answers(correct, wrong)
    return np.array([np.exp(p - logsumexp([p, *others])) for p, others in zip(right, options, strict=True)])


def log_truth_ratio(correct: ArrayLike, wrong: Sequence[ArrayLike]) -> Floats:
    """Logarithm of the truth ratio of each example: mean over the wrong answers minus the correct one.

    Args:
        correct: mean log-probabilities of the correct answers, (examples,).
        wrong: for each example the mean log-probabilities of its wrong answers; their number may differ.

    Returns:
        (examples,), finite; above zero where the model finds the wrong answers likelier.

    Raises:
        ValueError: an argument is empty or not finite, or the two differ in length.
    """
    right, options = _answers(correct, wrong)
    return np.array([others.mean() - p for p, others in zip(right, options, strict=True)])


def truth_ratio(correct: ArrayLike, wrong: Sequence[ArrayLike], *, aggregation: Aggregation) -> float:
    """Truth ratio r = exp(mean over wrong answers of their mean log-probability) / exp(that of the correct answer).

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


def extraction_strength(is_top1: ArrayLike) -> float:
    """1 - (1 / n) min{k : all tokens after the first k are predicted}: how little of an answer recalls the rest.

    From Carlini et al. 2021 (arXiv 2012.07805) as defined in OpenUnlearning (arXiv 2506.12618). Where not even the
    last token is predicted this is 0; OpenUnlearning's code, unlike its definition, gives 1 / n there. As in its code,
    the end-of-sequence token does not belong to the answer.

    Args:
        is_top1: for each of the n answer tokens, whether it is the most likely one after all tokens before it.

    Returns:
        A number in [0, 1]: 1 if the question alone brings the whole answer back.

    Raises:
        ValueError: `is_top1` is empty.
    """
    flags = np.asarray(is_top1, dtype=bool)
    if flags.size == 0:
        raise ValueError("is_top1 is empty: an answer without tokens has no extraction strength.")
    misses = np.flatnonzero(~flags)
    prefix = int(misses[-1]) + 1 if misses.size else 0
    return 1 - prefix / flags.size


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """ROUGE-L recall with stemming: the share of the reference's words that the prediction has in the same order.

    Args:
        predictions: generated texts.
        references: true answers, as many.

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    _same_length(predictions=predictions, references=references)
    scores = [
        _rouge_scorer().score(reference, prediction)["rougeL"].recall
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def forget_quality(log_truth_ratios: ArrayLike, reference_log_truth_ratios: ArrayLike) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test of truth ratios against those of a retrained model.

    High (at most 1): the unlearned model cannot be told from one that never saw the forget set. The test compares
    ranks, so logarithms serve as well as the ratios.

    Args:
        log_truth_ratios: of the unlearned model on the forget set, (examples,).
        reference_log_truth_ratios: of a model trained without the forget set, (examples,).

    Raises:
        ValueError: an argument is empty or not finite.
    """
    values = _vector(log_truth_ratios, "log_truth_ratios")
    reference = _vector(reference_log_truth_ratios, "reference_log_truth_ratios")
    return float(ks_2samp(values, reference).pvalue)


def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of what a model should keep (TOFU: nine numbers in [0, 1]); 0 as soon as one of them is 0.

    Raises:
        ValueError: `values` is empty, not finite, or has a negative entry.
    """
    numbers = _vector(values, "values")
    if (numbers < 0).any():
        raise ValueError(f"values must not be negative, but one is {numbers.min()}.")
    return 0.0 if (numbers == 0).any() else float(hmean(numbers))


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it imports nltk, which takes seconds

    return RougeScorer(["rougeL"], use_stemmer=True)


def _vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a flat list of numbers, but has shape {vector.shape}.")
    if vector.size == 0:
        raise ValueError(f"{name} is empty.")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}[{int(np.flatnonzero(~np.isfinite(vector))[0])}] is not finite.")
    return vector


def _answers(correct: ArrayLike, wrong: Sequence[ArrayLike]) -> tuple[Floats, list[Floats]]:
    right = _vector(correct, "correct")
    _same_length(correct=right, wrong=wrong)
    return right, [_vector(options, f"wrong[{index}]") for index, options in enumerate(wrong)]


def _same_length(**lists: Any) -> None:
    (first, one), (second, other) = lists.items()
    if len(one) != len(other):
        raise ValueError(f"{first} has {len(one)} entries and {second} has {len(other)}: they belong together.")
    if len(one) == 0:
        raise ValueError(f"{first} and {second} are empty.")
