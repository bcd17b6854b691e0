"""What is said of a model as a whole."""

from __future__ import annotations

from numpy.typing import ArrayLike
from scipy.stats import hmean, ks_2samp

from wagle_trainer.evaluation.metrics.metric_checks import vector


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
    values = vector(log_truth_ratios, "log_truth_ratios")
    reference = vector(reference_log_truth_ratios, "reference_log_truth_ratios")
    return float(ks_2samp(values, reference).pvalue)


def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of what a model should keep (TOFU: nine numbers in [0, 1]); 0 as soon as one of them is 0.

    Raises:
        ValueError: `values` is empty, not finite, or has a negative entry.
    """
    numbers = vector(values, "values")
    if (numbers < 0).any():
        raise ValueError(f"values must not be negative, but one is {numbers.min()}.")
    return 0.0 if (numbers == 0).any() else float(hmean(numbers))
