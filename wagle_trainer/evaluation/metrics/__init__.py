"""The numbers of OpenUnlearning's suites (arXiv 2506.12618, after TOFU, arXiv 2401.06121) as plain functions.

They take what a model gave, log-probabilities or text, and know no model. Log-probabilities are natural logarithms,
averaged over the tokens of an answer; everything stays in log space until the end, so that a model which finds an
answer impossible (probability 1e-400) still gets a finite number. OpenUnlearning adds 1e-10 to denominators instead;
the two agree as long as probabilities are well above that.
"""

from wagle_trainer.evaluation.metrics.membership import (
    min_k,
    min_k_plus_plus,
    privacy_leakage,
    reference_score,
    roc_auc,
    zlib_score,
)
from wagle_trainer.evaluation.metrics.memorization import exact_memorization, extraction_strength
from wagle_trainer.evaluation.metrics.models import forget_quality, model_utility
from wagle_trainer.evaluation.metrics.probability import (
    Aggregation,
    answer_probability,
    log_truth_ratio,
    perplexity,
    probability_with_options,
    truth_ratio,
)
from wagle_trainer.evaluation.metrics.text import rouge_l_f1, rouge_l_recall

__all__ = [
    "Aggregation",
    "answer_probability",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "log_truth_ratio",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "perplexity",
    "privacy_leakage",
    "probability_with_options",
    "reference_score",
    "roc_auc",
    "rouge_l_f1",
    "rouge_l_recall",
    "truth_ratio",
    "zlib_score",
]
