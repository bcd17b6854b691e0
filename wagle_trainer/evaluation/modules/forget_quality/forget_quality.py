"""TOFU's forget quality, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class ForgetQuality(base.FunctionMetric):
    """p-value, in [0, 1], of the Kolmogorov-Smirnov test of truth ratios against those of a model retrained without the
    forget set; high: the two cannot be told apart.

    Args:
        predictions: logarithm of the truth ratio of each forget example under the unlearned model.
        references: the same under the retrained model.

    Returns:
        `forget_quality`.
    """

    function = staticmethod(metrics.forget_quality)
    columns = base.Features(predictions=base.NUMBER, references=base.NUMBER)
    source = base.TOFU
