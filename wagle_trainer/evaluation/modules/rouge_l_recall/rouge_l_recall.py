"""ROUGE-L recall, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class RougeLRecall(base.FunctionMetric):
    """ROUGE-L recall with stemming, in [0, 1]: the share of the reference's words that the text has in the same order.

    Args:
        predictions: generated answers.
        references: true answers.

    Returns:
        `rouge_l_recall`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.rouge_l_recall)
    columns = base.Features(predictions=base.TEXT, references=base.TEXT)
    source = base.ROUGE
