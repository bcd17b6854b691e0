"""Malicious use prevention: WMDP."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import concatenate_datasets

from tasks.task import RecipeArguments, Task, register_task
from wagle_trainer.data import QAFormat, load_wmdp
from wagle_trainer.data.forget_and_retain import read_rows
from wagle_trainer.data.sources import first_rows
from wagle_trainer.evaluation import get_suite
from wagle_trainer.models.small_llama import small_llama


@dataclass
class WmdpArguments(RecipeArguments):
    """The corpora and questions of WMDP. `dataset_name` is `fictional`, `hub`, or a folder with their files.

    `forget_file` and `retain_file` stand for corpora of your own beside the questions of `dataset_name`.
    """

    forget_corpora: list[str] = field(
        default_factory=lambda: ["bio-forget-corpus", "cyber-forget-corpus"], metadata={"help": "Corpora to forget."}
    )
    retain_corpus: str = field(default="wikitext", metadata={"help": "The corpus to keep."})
    corpus_rows: int | None = field(default=None, metadata={"help": "Texts of each corpus; by default all."})
    forget_questions: list[str] = field(
        default_factory=lambda: ["wmdp-bio", "wmdp-cyber"], metadata={"help": "Questions that measure forgetting."}
    )
    retain_questions: list[str] = field(
        default_factory=lambda: ["mmlu"], metadata={"help": "Questions that measure what is kept."}
    )
    harness: bool = field(
        default=False,
        metadata={"help": "Measure through the lm-evaluation-harness, which reads WMDP and MMLU from the hub itself."},
    )


@register_task
class Wmdp(Task):
    """Forget what makes a model useful for harm, keep everything else."""

    name = "wmdp"
    suite = "multiple_choice"
    arguments = WmdpArguments
    files_beside_name = True
    refused_attacks: ClassVar = {"paraphrase": "its questions have one wording each"}
    data: WmdpArguments

    def __init__(self, data: WmdpArguments):
        if data.harness:
            self.suite = "wmdp"
        super().__init__(data)

    def small_model(self, cache: Path, seed: int = 0, retrained: bool = False) -> str:
        return small_llama("retain" if retrained else "full", cache, seed, self.name)

    @property
    def folder(self) -> str | None:
        """Where the files are; None for the hub."""
        return None if self.data.dataset_name == "hub" else self.data.dataset_name

    def training_sets(self, qa: QAFormat) -> tuple[Any, Any]:
        if self.data.dataset_name is None and self.data.retain_file is not None:
            return super().training_sets(qa)
        data, limit = self.data, self.data.corpus_rows
        if data.forget_file is not None:
            forget = first_rows(read_rows(data.forget_file), limit)
        else:
            forget = concatenate_datasets([load_wmdp(name, self.folder, limit=limit) for name in data.forget_corpora])
        if data.retain_file is not None:
            return forget, first_rows(read_rows(data.retain_file), limit)
        return forget, load_wmdp(data.retain_corpus, self.folder, limit=limit)

    def evaluation_sets(self, qa: QAFormat, limit: int | None) -> Any:
        if self.data.harness:
            return {"tasks": get_suite("wmdp").load("hub"), "limit": limit}
        data = self.data
        return get_suite(self.suite).load(
            data.dataset_name or "hub", forget=data.forget_questions, retain=data.retain_questions, limit=limit
        )

    def evaluate(self, model: Any, qa: QAFormat, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        if self.data.harness:
            return get_suite("wmdp").evaluate(model, qa.tokenizer, sets["tasks"], limit=sets["limit"], **passes)
        # The small Llama learns questions and answers, no letters.
        ask_for = "text" if self.data.dataset_name == "fictional" else "letter"
        return get_suite(self.suite).evaluate(model, qa.tokenizer, sets, ask_for=ask_for, qa_format=qa, **passes)

    def attack_sets(self, qa: QAFormat) -> Any:
        sets = get_suite(self.suite).load(
            self.data.dataset_name or "hub", forget=self.data.forget_questions, retain=self.data.retain_questions
        )
        return {
            name: [{"question": row["question"], "answer": row["choices"][row["answer"]]} for row in rows]
            for name, rows in sets.items()
        }
