"""TOFU's model utility, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class ModelUtility(base.FunctionMetric):
    """Harmonic mean of what a model should keep, in [0, 1]; 0 as soon as one number is 0.

    Args:
        predictions: numbers in [0, 1]; TOFU's are probability, ROUGE-L recall and truth ratio on its three other sets.

    Returns:
        `model_utility`.
    """

    function = staticmethod(metrics.model_utility)
    columns = base.Features(predictions=base.NUMBER)
    source = base.TOFU
