"""Measuring what a model still knows. It needs a model and a tokenizer, nothing of how the model was trained.

Names load on first use, so that `metrics` and `results` come without torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "AnswerScore": "likelihoods",
    "EvaluationCallback": "callback",
    "HarnessTasks": "wmdp",
    "NothingForgottenError": "robustness",
    "Suite": "suites",
    "answer_probability": "metrics",
    "evaluate_copyright": "copyright",
    "evaluate_detoxification": "detoxification",
    "evaluate_muse": "muse",
    "evaluate_tofu": "tofu",
    "evaluate_wmdp": "wmdp",
    "exact_memorization": "metrics",
    "extraction_strength": "metrics",
    "forget_quality": "metrics",
    "generate_greedy": "generation",
    "generate_samples": "generation",
    "get_attack": "robustness",
    "get_suite": "suites",
    "gradient_norms": "membership",
    "list_attacks": "robustness",
    "list_metrics": "modules",
    "list_suites": "suites",
    "load_metric": "modules",
    "load_results": "results",
    "log_truth_ratio": "metrics",
    "membership_scores": "membership",
    "min_k": "metrics",
    "min_k_plus_plus": "metrics",
    "model_utility": "metrics",
    "paper_averages": "wagle_paper",
    "perplexity": "metrics",
    "privacy_leakage": "metrics",
    "probability_with_options": "metrics",
    "reference_score": "metrics",
    "register_attack": "robustness",
    "register_suite": "suites",
    "request_curve": "curves",
    "results_table": "results",
    "roc_auc": "metrics",
    "rouge_l_f1": "metrics",
    "rouge_l_recall": "metrics",
    "run_attacks": "robustness",
    "save_results": "results",
    "score_answers": "likelihoods",
    "truth_ratio": "metrics",
    "zlib_score": "metrics",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
