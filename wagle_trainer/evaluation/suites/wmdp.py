"""WMDP and MMLU as a suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from wagle_trainer.evaluation.suites.suite import Suite, register_suite


@register_suite("wmdp")
class Wmdp(Suite):
    """WMDP (Li et al. 2024, arXiv 2403.03218) and MMLU through the lm-evaluation-harness: dangerous and general
    knowledge, in multiple-choice questions.
    """

    headline: ClassVar = {
        "wmdp_bio_acc": ("WMDP", "bio"),
        "wmdp_cyber_acc": ("WMDP", "cyber"),
        "forget_accuracy": ("forget", "accuracy"),
        "retain_accuracy": ("retain", "accuracy"),
    }
    forget_metrics: ClassVar = {"forget_accuracy": "lower"}
    utility_metrics: ClassVar = {"retain_accuracy": "higher"}

    def load(
        self,
        data: str = "hub",
        *,
        forget: Sequence[str] = ("wmdp_bio", "wmdp_cyber"),
        retain: Sequence[str] = ("mmlu",),
    ) -> Any:
        """The tasks; the harness reads their questions when the model is measured.

        Args:
            data: `"hub"` for the harness's own tasks, or a folder of task files, see `HarnessTasks`.
            forget: tasks or groups of tasks that the model is to fail.
            retain: tasks or groups of tasks that it is to pass as before.
        """
        from wagle_trainer.evaluation.wmdp import HarnessTasks

        return HarnessTasks(forget, retain, None if data == "hub" else data)

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_wmdp`."""
        from wagle_trainer.evaluation.wmdp import evaluate_wmdp

        return evaluate_wmdp(model, tokenizer, data, **kwargs)
