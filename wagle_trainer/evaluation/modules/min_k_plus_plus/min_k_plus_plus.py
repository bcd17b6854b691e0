"""Min-K%++, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class MinKPlusPlus(base.FunctionMetric):
    """Min-K%++ with the sign of a loss, any number: `min_k` of log-probabilities standardised by the model's own
    distribution at each position; low for what a model was trained on.

    Args:
        predictions: for each example the log-probability of each of its tokens, in nats.
        means: for each token the expected log-probability of one drawn from the model.
        stds: its standard deviation.
        k: share of the tokens, in (0, 1]; by default 0.2.

    Returns:
        `min_k_plus_plus`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.min_k_plus_plus)
    columns = base.Features(predictions=base.NUMBERS, means=base.NUMBERS, stds=base.NUMBERS)
    each = True
    source = """@inproceedings{zhang2025mink,
    title = {Min-K\\%++: Improved Baseline for Detecting Pre-Training Data from Large Language Models},
    author = {Zhang, Jingyang and Sun, Jingwei and Yeats, Eric and Ouyang, Yang and Kuo, Martin and Zhang, Jianyi and
        Yang, Hao Frank and Li, Hai},
    booktitle = {International Conference on Learning Representations},
    year = {2025}
}"""
