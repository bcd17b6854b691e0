"""TOFU as a suite."""

from __future__ import annotations

from typing import Any, ClassVar

from wagle_trainer.evaluation.suites.suite import Suite, register_suite


@register_suite("tofu")
class Tofu(Suite):
    """TOFU (Maini et al. 2024, arXiv 2401.06121) under OpenUnlearning's names: questions about invented authors.

    Membership inference (`mia_...`) is best at 0.5 and `privleak` at zero: they say neither more nor less.
    """

    headline: ClassVar = {
        "forget_Q_A_Prob": ("forget", "prob"),
        "forget_Q_A_ROUGE": ("forget", "ROUGE-L"),
        "forget_truth_ratio": ("forget", "truth ratio"),
        "extraction_strength": ("extraction", "strength"),
        "retain_Q_A_Prob": ("retain", "prob"),
        "retain_Q_A_ROUGE": ("retain", "ROUGE-L"),
        "model_utility": ("model", "utility"),
        "forget_quality": ("forget", "quality"),
    }
    forget_metrics: ClassVar = {
        "forget_Q_A_Prob": "lower",
        "forget_Q_A_ROUGE": "lower",
        "forget_PARA_Q_A_Prob": "lower",
        "forget_PARA_Q_A_ROUGE": "lower",
        "forget_truth_ratio": "higher",
        "extraction_strength": "lower",
        "exact_memorization": "lower",
        "forget_quality": "higher",
    }
    utility_metrics: ClassVar = {
        "model_utility": "higher",
        "retain_Q_A_Prob": "higher",
        "retain_Q_A_ROUGE": "higher",
        "retain_Truth_Ratio": "higher",
        "ra_Q_A_Prob_normalised": "higher",
        "ra_Q_A_ROUGE": "higher",
        "ra_Truth_Ratio": "higher",
        "wf_Q_A_Prob_normalised": "higher",
        "wf_Q_A_ROUGE": "higher",
        "wf_Truth_Ratio": "higher",
    }

    def load(self, data: str = "fictional", *, forget_split: str = "forget10", limit: int | None = None) -> Any:
        """The sets, see `load_tofu_evaluation`.

        Args:
            data: a hub id (`"locuslab/TOFU"`), a folder of `<split>.json` files, or the bundled `"fictional"`.
            forget_split: forget01, forget05 or forget10.
            limit: take only the first rows of each set.
        """
        from wagle_trainer.data.tofu import load_tofu_evaluation

        return load_tofu_evaluation(data, forget_split, limit)

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_tofu`."""
        from wagle_trainer.evaluation.tofu import evaluate_tofu

        return evaluate_tofu(model, tokenizer, data, **kwargs)
