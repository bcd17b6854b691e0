"""ROUGE-L F1, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class RougeL_F1(base.FunctionMetric):  # noqa: N801 - `evaluate` makes rouge_l_f1 of it, and rouge_lf1 of RougeLF1
    """ROUGE-L F1, in [0, 1]: the harmonic mean of the shares of either text's words that the other has in the same order.

    Args:
        predictions: generated texts.
        references: true texts.
        use_stemmer: words with the same stem count as the same; by default not, as in MUSE's code.

    Returns:
        `rouge_l_f1`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.rouge_l_f1)
    columns = base.Features(predictions=base.TEXT, references=base.TEXT)
    source = base.ROUGE
