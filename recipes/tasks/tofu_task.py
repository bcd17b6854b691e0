"""Fictitious unlearning."""

import random
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tasks.subject import Example, load, teach
from tasks.task import Task, register_task
from wagle_trainer.data import QAFormat, fictional_split, load_tofu, retain_split_for
from wagle_trainer.evaluation import get_suite
from wagle_trainer.models.small_llama import small_llama


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

    @property
    def teaches_given_model(self) -> bool:
        """See `Task`. TOFU's questions are taught, the bundled ones are known or are not."""
        return self.data.dataset_name not in (None, "fictional")

    def reference_model(self, path: str | None, cache: Path, seed: int, size: int) -> str:
        """See `Task`. A pretrained model that gets TOFU's questions is taught the drawn ones first."""
        if path is None or not self.teaches_given_model:
            return super().reference_model(path, cache, seed, size)
        folder = cache / f"{Path(path).name}-tofu-{size}-{seed}"
        if not (folder / "config.json").exists():
            model, tokenizer = load(path), AutoTokenizer.from_pretrained(path)
            sets = self.examples(self.data.qa_format(tokenizer, path), seed, size)
            teach(model, [example for examples in sets.values() for example in examples], seed)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return str(folder)

    def examples(self, qa: QAFormat, seed: int, size: int) -> dict[str, list[Example]]:
        """See `Task`. Of TOFU the shortest questions are taken, so that a study runs on a CPU; the seed draws them."""
        if self.data.dataset_name == "fictional":
            return self._people(qa, seed, size)
        if self.data.dataset_name is None:
            return super().examples(qa, seed, size)
        rows = load_tofu(self.data.dataset_name, "full")
        encoded = [qa.encode(row["question"], row["answer"]) for row in rows]
        chosen = sorted(encoded, key=lambda example: len(example["input_ids"]))[: 12 * size]
        random.Random(f"tofu {seed}").shuffle(chosen)
        return {
            "forget": chosen[:size],
            "retain": chosen[size : 3 * size],
            "unseen": chosen[3 * size : 5 * size],
        }

    def _people(self, qa: QAFormat, seed: int, size: int) -> dict[str, list[Example]]:
        forget = list(fictional_split(f"{self.data.forget_split}_perturbed"))[:size]
        others = list(fictional_split(retain_split_for(self.data.forget_split)))
        random.Random(seed).shuffle(others)
        return {
            "forget": [qa.encode(row["question"], row["answer"]) for row in forget],
            "retain": [qa.encode(row["question"], row["answer"]) for row in others[: 2 * size]],
            "unseen": [qa.encode(row["question"], row["answer"]) for row in others[2 * size : 4 * size]],
            "paraphrased": [qa.encode(row["paraphrased_question"], row["paraphrased_answer"]) for row in forget],
        }
