"""TOFU's truth ratio, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class TruthRatio(base.FunctionMetric):
    """Truth ratio r of wrong to true answers, aggregated to a number in [0, 1]; higher is better.

    Args:
        predictions: mean log-probability per token of each true (paraphrased) answer, in nats.
        references: for each of them those of its wrong answers.
        aggregation: "closer_to_1_better", the mean of min(r, 1 / r), for a forget set; "true_better", the mean of
            max(0, 1 - r), for all others.

    Returns:
        `truth_ratio`.
    """

    function = staticmethod(metrics.truth_ratio)
    columns = base.Features(predictions=base.NUMBER, references=base.NUMBERS)
    source = base.TOFU
