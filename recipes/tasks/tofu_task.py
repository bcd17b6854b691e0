"""Fictitious unlearning."""

from pathlib import Path
from typing import Any

from small_llama import small_llama

from tasks.task import Task, register_task
from wagle_trainer.data import QAFormat, retain_split_for
from wagle_trainer.evaluation import get_suite


@register_task
class Tofu(Task):
    """Fictitious unlearning: forget some of the invented authors, keep the others."""

    name = "tofu"
    suite = "tofu"

    def small_model(self, cache: Path, seed: int = 0, retrained: bool = False) -> str:
        return small_llama(retain_split_for(self.data.forget_split) if retrained else "full", cache, seed)

    def evaluation_sets(self, qa: QAFormat, limit: int | None) -> Any:
        if self.data.dataset_name is None:
            raise ValueError(
                "The TOFU recipes measure on TOFU's questions: give --dataset_name. For files of your own, "
                "`wagle unlearn` trains and `wagle evaluate` measures."
            )
        return get_suite(self.suite).load(self.data.dataset_name, forget_split=self.data.forget_split, limit=limit)

    def evaluate(self, model: Any, qa: QAFormat, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        return get_suite(self.suite).evaluate(model, qa.tokenizer, sets, qa_format=qa, reference=reference, **passes)

    def attack_sets(self, qa: QAFormat) -> Any:
        return self.evaluation_sets(qa, None)
