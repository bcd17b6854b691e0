"""Measuring what a model still knows. It needs a model and a tokenizer, nothing of how the model was trained.

Names load on first use, so that `metrics` and `results` come without torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "AnswerScore": "likelihoods",
    "Suite": "suites",
    "answer_probability": "metrics",
    "evaluate_tofu": "tofu",
    "extraction_strength": "metrics",
    "forget_quality": "metrics",
    "generate_greedy": "generation",
    "get_suite": "suites",
    "list_suites": "suites",
    "load_results": "results",
    "log_truth_ratio": "metrics",
    "model_utility": "metrics",
    "probability_with_options": "metrics",
    "register_suite": "suites",
    "results_table": "results",
    "rouge_l_recall": "metrics",
    "save_results": "results",
    "score_answers": "likelihoods",
    "truth_ratio": "metrics",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
