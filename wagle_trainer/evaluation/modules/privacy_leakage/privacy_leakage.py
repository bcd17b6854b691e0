"""MUSE's privacy leakage, as an `evaluate` metric."""

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.modules import base


class PrivacyLeakage(base.FunctionMetric):
    """How far a membership attack's AUC is from that on a retrained model, in percent, -100 or more; 0 is best, below it
    the forget set is still recognised, above it stands out as unlearned.

    Args:
        predictions: AUC of the attack on each unlearned model, as `roc_auc` gives it.
        references: AUC of the same attack on a model retrained without the forget set.

    Returns:
        `privacy_leakage`, the mean, and `per_example`.
    """

    function = staticmethod(metrics.privacy_leakage)
    columns = base.Features(predictions=base.NUMBER, references=base.NUMBER)
    each = True
    source = """@article{shi2024muse,
    title = {{MUSE}: Machine Unlearning Six-Way Evaluation for Language Models},
    author = {Shi, Weijia and Lee, Jaechan and Huang, Yangsibo and Malladi, Sadhika and Zhao, Jieyu and Holtzman, Ari and
        Liu, Daogao and Zettlemoyer, Luke and Smith, Noah A. and Zhang, Chiyuan},
    journal = {arXiv preprint arXiv:2407.06460},
    year = {2024}
}"""
