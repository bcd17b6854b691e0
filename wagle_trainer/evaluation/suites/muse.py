"""MUSE as a suite."""

from __future__ import annotations

from typing import Any, ClassVar

from wagle_trainer.evaluation.suites.suite import Suite, register_suite


@register_suite("muse")
class Muse(Suite):
    """MUSE (Shi et al. 2024, arXiv 2407.06460): verbatim and knowledge memorisation of news or books, privacy leakage.

    `privleak` is best at zero, and `mia_min_k` where it is for a retrained model: they are in the table only.
    """

    headline: ClassVar = {
        "forget_verbmem_ROUGE": ("forget", "verbmem"),
        "forget_knowmem_ROUGE": ("forget", "knowmem"),
        "retain_knowmem_ROUGE": ("retain", "knowmem"),
        "mia_min_k": ("min-k", "AUC"),
        "privleak": ("privacy", "leakage"),
    }
    forget_metrics: ClassVar = {"forget_verbmem_ROUGE": "lower", "forget_knowmem_ROUGE": "lower"}
    utility_metrics: ClassVar = {"retain_knowmem_ROUGE": "higher"}

    def load(self, data: str, *, few_shot: bool = True, limit: int | None = None) -> Any:
        """The sets, see `load_muse_evaluation`.

        Args:
            data: a hub id (`"muse-bench/MUSE-News"`, `"muse-bench/MUSE-Books"`), or a folder laid out like them.
            few_shot: show questions with their answers before each question.
            limit: take only the first rows of each set.
        """
        from wagle_trainer.data.muse import load_muse_evaluation

        return load_muse_evaluation(data, few_shot=few_shot, limit=limit)

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_muse`."""
        from wagle_trainer.evaluation.muse import evaluate_muse

        return evaluate_muse(model, tokenizer, data, **kwargs)
