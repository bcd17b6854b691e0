"""Model utility: one number for all that a model should keep (TOFU, arXiv 2401.06121)."""

from __future__ import annotations

from numpy.typing import ArrayLike
from scipy.stats import hmean

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import vector


@register_metric(
    "model_utility",
    inputs={
        "predictions": (
            "number",
            "numbers in [0, 1]; TOFU's are probability, ROUGE-L recall and truth ratio on its three other sets",
        )
    },
    range=SHARE,
    more_known="higher",
    source=citations.TOFU,
)
def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of what a model should keep (TOFU: nine numbers in [0, 1]); 0 as soon as one of them is 0.

    Args:
        values: the numbers, at least one, none of them negative.

    Raises:
        ValueError: `values` is empty, not finite, or has a negative entry.
    """
    numbers = vector(values, "values")
    if (numbers < 0).any():
        raise ValueError(f"values must not be negative, but one is {numbers.min()}.")
    return 0.0 if (numbers == 0).any() else float(hmean(numbers))
