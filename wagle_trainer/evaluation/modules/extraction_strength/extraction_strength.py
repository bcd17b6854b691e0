"""Extraction strength, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class ExtractionStrength(base.FunctionMetric):
    """Extraction strength, in [0, 1]: 1 less the share of an answer that has to be given before all its other tokens are
    predicted.

    Args:
        predictions: for each answer a list of flags: whether each of its tokens is the most likely one.

    Returns:
        `extraction_strength`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.extraction_strength)
    columns = base.Features(predictions=base.FLAGS)
    each = True
    source = base.EXTRACTION
