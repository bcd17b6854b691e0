"""Exact memorization, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class ExactMemorization(base.FunctionMetric):
    """Exact memorization, in [0, 1]: the share of an answer's tokens that are the most likely ones.

    Args:
        predictions: for each answer a list of flags: whether each of its tokens is the most likely one.

    Returns:
        `exact_memorization`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.exact_memorization)
    columns = base.Features(predictions=base.FLAGS)
    each = True
    source = """@inproceedings{tirumala2022memorization,
    title = {Memorization Without Overfitting: Analyzing the Training Dynamics of Large Language Models},
    author = {Tirumala, Kushal and Markosyan, Aram H. and Zettlemoyer, Luke and Aghajanyan, Armen},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2022}
}"""
