"""Forget quality: can the unlearned model be told from a retrained one? (TOFU, arXiv 2401.06121)"""

from __future__ import annotations

from numpy.typing import ArrayLike
from scipy.stats import ks_2samp

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import vector


@register_metric(
    "forget_quality",
    inputs={
        "predictions": ("number", "logarithm of the truth ratio of each forget example under the unlearned model"),
        "references": ("number", "the same under the retrained model"),
    },
    range=SHARE,
    source=citations.TOFU,
)
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
