"""Metrics as plain functions, each registered once. Every module of this folder is imported, so a new file is all it takes.

Definitions are OpenUnlearning's (arXiv 2506.12618, after TOFU, arXiv 2401.06121). Functions take what a model gave,
log-probabilities or text, and know no model. Log-probabilities are natural logarithms,
averaged over the tokens of an answer; everything stays in log space until the end, so that a model which finds an
answer impossible (probability 1e-400) still gets a finite number. OpenUnlearning adds 1e-10 to denominators instead;
the two agree as long as probabilities are well above that.
"""

from wagle_trainer.evaluation.metrics.forget_quality import forget_quality
from wagle_trainer.evaluation.metrics.localization import localization_auc, localization_precision
from wagle_trainer.evaluation.metrics.membership import (
    min_k,
    min_k_plus_plus,
    privacy_leakage,
    reference_score,
    roc_auc,
    zlib_score,
)
from wagle_trainer.evaluation.metrics.memorization import exact_memorization, extraction_strength, verbatim_prefix
from wagle_trainer.evaluation.metrics.metric import Metric, get_metric, list_metrics, register_metric
from wagle_trainer.evaluation.metrics.model_utility import model_utility
from wagle_trainer.evaluation.metrics.probability import answer_probability, perplexity, probability_with_options
from wagle_trainer.evaluation.metrics.rouge import rouge_1_recall, rouge_l_f1, rouge_l_recall
from wagle_trainer.evaluation.metrics.truth_ratio import Aggregation, log_truth_ratio, truth_ratio
from wagle_trainer.evaluation.metrics.unlearning_depth import unlearning_depth
from wagle_trainer.utils.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "Aggregation",
    "Metric",
    "answer_probability",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "get_metric",
    "list_metrics",
    "localization_auc",
    "localization_precision",
    "log_truth_ratio",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "perplexity",
    "privacy_leakage",
    "probability_with_options",
    "reference_score",
    "register_metric",
    "roc_auc",
    "rouge_1_recall",
    "rouge_l_f1",
    "rouge_l_recall",
    "truth_ratio",
    "unlearning_depth",
    "verbatim_prefix",
    "zlib_score",
]
