"""Likelihood normalised by compressed size, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class Zlib(base.FunctionMetric):
    """Negative log-likelihood over the bytes that zlib needs for the text, at least 0; low for what a model was trained on.

    Args:
        predictions: mean negative log-likelihood per token of each text, in nats.
        references: the texts.

    Returns:
        `zlib`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.zlib_score)
    columns = base.Features(predictions=base.NUMBER, references=base.TEXT)
    each = True
    source = base.EXTRACTION
