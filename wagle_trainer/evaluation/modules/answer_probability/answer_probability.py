"""Length-normalised probability of answers, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class AnswerProbability(base.FunctionMetric):
    """Length-normalised probability of true answers: exp(mean log-probability per token), in [0, 1].

    Args:
        predictions: mean log-probability per token of each answer, in nats.

    Returns:
        `answer_probability`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.answer_probability)
    columns = base.Features(predictions=base.NUMBER)
    source = base.TOFU
