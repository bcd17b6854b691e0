"""Min-K% Prob, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class MinK(base.FunctionMetric):
    """Min-K% Prob with the sign of a loss, at least 0: minus the mean log-probability of the least likely tokens; low for
    what a model was trained on.

    Args:
        predictions: for each example the log-probability of each of its tokens, in nats.
        k: share of the tokens, in (0, 1]; by default 0.2.

    Returns:
        `min_k`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.min_k)
    columns = base.Features(predictions=base.NUMBERS)
    each = True
    source = """@inproceedings{shi2024detecting,
    title = {Detecting Pretraining Data from Large Language Models},
    author = {Shi, Weijia and Ajith, Anirudh and Xia, Mengzhou and Huang, Yangsibo and Liu, Daogao and Blevins, Terra
        and Chen, Danqi and Zettlemoyer, Luke},
    booktitle = {International Conference on Learning Representations},
    year = {2024}
}"""
