"""AUC of a membership-inference attack, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


def _by_membership(scores: list[float], is_member: list[int]) -> float:
    rows = list(zip(scores, is_member, strict=True))
    if any(flag not in (0, 1) for flag in is_member):
        raise ValueError("roc_auc takes 1 (member) and 0 (non-member) as references.")
    return metrics.roc_auc(*([score for score, flag in rows if flag == wanted] for wanted in (1, 0)))


class RocAuc(base.FunctionMetric):
    """Probability, in [0, 1], that a member of the training set scores below a non-member; 0.5: scores say nothing.

    Args:
        predictions: score of each example, with the sign of a loss: the lower, the likelier it is a member.
        references: 1 for each example whose membership is in question (the forget set), 0 for each that was never
            trained on (the holdout set).

    Returns:
        `roc_auc`.
    """

    function = staticmethod(_by_membership)
    columns = base.Features(predictions=base.NUMBER, references=base.FLAG)
