"""Likelihood held against a reference model, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class ReferenceScore(base.FunctionMetric):
    """Negative log-likelihood less that of a reference model, any number; low for what a model was trained on and the
    reference was not.

    Args:
        predictions: mean negative log-likelihood per token of each text, in nats.
        references: the same under a model that was not trained on the texts.

    Returns:
        `reference_score`, the mean, and `per_example`; `roc_auc` of the latter is the attack.
    """

    function = staticmethod(metrics.reference_score)
    columns = base.Features(predictions=base.NUMBER, references=base.NUMBER)
    source = base.EXTRACTION
