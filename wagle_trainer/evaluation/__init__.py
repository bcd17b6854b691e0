"""Measuring what a model still knows. It needs a model and a tokenizer, nothing of how the model was trained.

Names load on first use, so that `metrics` and `results` come without torch.
"""

from wagle_trainer.utils.lazy_names import lazy_names

_HOMES = {
    "AnswerScore": "answer_scores",
    "EvaluationCallback": "evaluation_callback",
    "HarnessTasks": "suites.wmdp",
    "NothingForgottenError": "attacks",
    "Suite": "suites",
    "answer_probability": "metrics",
    "evaluate_copyright": "suites.copyright",
    "evaluate_detoxification": "suites.detoxification",
    "evaluate_muse": "suites.muse",
    "evaluate_tofu": "suites.tofu",
    "evaluate_wmdp": "suites.wmdp",
    "exact_memorization": "metrics",
    "extraction_strength": "metrics",
    "forget_quality": "metrics",
    "generate_greedy": "generation",
    "generate_samples": "generation",
    "get_attack": "attacks",
    "get_suite": "suites",
    "gradient_norms": "membership_attacks",
    "list_attacks": "attacks",
    "list_metrics": "metrics",
    "list_suites": "suites",
    "load_metric": "evaluate_modules",
    "load_results": "results",
    "log_truth_ratio": "metrics",
    "membership_scores": "membership_attacks",
    "min_k": "metrics",
    "min_k_plus_plus": "metrics",
    "model_utility": "metrics",
    "paper_averages": "suites.wagle_paper",
    "perplexity": "metrics",
    "privacy_leakage": "metrics",
    "probability_with_options": "metrics",
    "reference_score": "metrics",
    "register_attack": "attacks",
    "register_metric": "metrics",
    "register_suite": "suites",
    "request_curve": "request_curves",
    "results_table": "results",
    "roc_auc": "metrics",
    "rouge_l_f1": "metrics",
    "rouge_l_recall": "metrics",
    "run_attacks": "attacks",
    "save_results": "results",
    "score_answers": "answer_scores",
    "truth_ratio": "metrics",
    "zlib_score": "metrics",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
