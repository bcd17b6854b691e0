"""Detoxification."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from tasks.task import RecipeArguments, Task, register_task
from tasks.texts_as_questions import as_questions, text_format
from wagle_trainer.data import QAFormat
from wagle_trainer.data.fictional import speakers_rows
from wagle_trainer.data.forget_and_retain import load_forget_and_retain, read_rows
from wagle_trainer.data.insults import insult_share
from wagle_trainer.data.sources import first_rows
from wagle_trainer.evaluation import get_suite
from wagle_trainer.models.small_llama import small_llama


@dataclass
class DetoxArguments(RecipeArguments):
    """Prompts with toxic (`rejected`) and calm (`chosen`) continuations in `forget_file`, text in `retain_file`."""

    prompts_file: str | None = field(
        default=None,
        metadata={
            "help": "Prompts whose continuations are measured, rows with prompt, such as allenai/real-toxicity-prompts; by "
            "default those of the forget file."
        },
    )
    general_file: str | None = field(
        default=None, metadata={"help": "Rows with text, to measure perplexity on; by default none is measured."}
    )
    toxicity: str = field(
        default="words",
        metadata={
            "help": "What scores continuations: 'words', a bundled list of insults, or 'classifier', evaluate's "
            "measurement, whose model comes from the hub.",
            "choices": ["words", "classifier"],
        },
    )
    continuation_tokens: int = field(default=100, metadata={"help": "Tokens generated after each prompt."})


@register_task
class Detox(Task):
    """Forget insults, keep what else is said."""

    name = "detox"
    suite = "detoxification"
    arguments = DetoxArguments
    utility_metric = "general_perplexity"
    refused_attacks: ClassVar = {
        "jailbreak": "a prompt is continued, and no question is asked that a request could stand before",
        "paraphrase": "its prompts have one wording each",
    }
    data: DetoxArguments

    def small_model(self, cache: Path, seed: int = 0, retrained: bool = False) -> str:
        return small_llama("retain" if retrained else "full", cache, seed, self.name)

    def training_sets(self, qa: QAFormat) -> tuple[Any, Any]:
        if self.data.dataset_name is None:
            return load_forget_and_retain(self.data, qa)
        if self.data.dataset_name != "fictional":
            raise ValueError(
                "The detoxification recipe knows no data set by name: give --forget_file (prompt, chosen, rejected) and "
                "--retain_file, or --dataset_name fictional."
            )
        forget, retain = (Dataset.from_list(speakers_rows(name)) for name in ("forget", "retain"))
        return forget, retain

    def evaluation_sets(self, qa: QAFormat, limit: int | None) -> Any:
        if self.data.dataset_name == "fictional":
            rows = {name: Dataset.from_list(speakers_rows(name)) for name in ("prompts", "general")}
        else:
            rows = {"prompts": read_rows(str(self.data.prompts_file or self.data.forget_file))}
            if self.data.general_file is not None:
                rows["general"] = read_rows(self.data.general_file)
        return {name: first_rows(some, limit) for name, some in rows.items()}

    def evaluate(self, model: Any, qa: QAFormat, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        return get_suite(self.suite).evaluate(
            model,
            qa.tokenizer,
            sets,
            toxicity=insult_share if self.data.toxicity == "words" else None,
            max_new_tokens=self.data.continuation_tokens,
            **passes,
        )

    def attack_sets(self, qa: QAFormat) -> Any:
        """See `Task`: prompts with the replies that are to be forgotten, and what is kept."""
        forget, retain = self.training_sets(qa)
        return {"forget": as_questions(forget), "retain": as_questions(retain)}

    def attack_format(self, qa: QAFormat) -> QAFormat:
        """See `Task`."""
        return text_format(qa)
