"""What a task is: its arguments, its sets, its measurement, and the table of all of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from transformers import AutoTokenizer

from tasks.subject import Example, Subject, load, load_shared
from wagle_trainer.comparison.suite_task import rows_or_all
from wagle_trainer.data import QAFormat
from wagle_trainer.data.forget_and_retain import DataArguments, load_forget_and_retain
from wagle_trainer.data.preparation import DatasetPreparation
from wagle_trainer.evaluation import get_suite


@dataclass
class RecipeArguments(DataArguments):
    """Data, controls and evaluation of a recipe."""

    controls: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What else to train for comparison: other scores, such as random; none or dense: no mask; lora; paper: the "
            "simpler methods of the WAGLE paper (none, random, magnitude, wanda, lora)."
        },
    )
    retrained_model: str | None = field(
        default=None,
        metadata={"help": "A model that never saw the forget set, to compare with."},
    )
    # With None in the union, the command line takes a string.
    evaluation_samples: int | str | None = field(
        default=20,
        metadata={"help": "Rows of each evaluation set; published numbers need 'all'. By default 20."},
    )
    evaluation_batch_size: int = field(default=32, metadata={"help": "Batch size of the evaluation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        rows_or_all(self.evaluation_samples)
        if self.dataset_name is None and self.forget_file is None and self.retain_file is None:
            self.dataset_name = "fictional"


class Task:
    """One application: its forget and retain sets, its suite, and the small model that the bundled example needs.

    Attributes:
        name: what `--task` calls it.
        suite: the evaluation suite of `wagle_trainer.evaluation`.
        arguments: the dataclass of its arguments.
        utility_metric: the suite's metric of what is kept, for comparisons; None for the suite's first.
        data: the arguments.
        limit: rows of each evaluation set; None for all.
        headline: the columns of the table.
        refused_attacks: attacks that say nothing about it -> why.
        files_beside_name: whether files can be given beside a data set, in place of some of its own.
    """

    name: ClassVar[str]
    suite: str
    arguments: ClassVar[type[RecipeArguments]] = RecipeArguments
    utility_metric: str | None = None
    refused_attacks: ClassVar[Mapping[str, str]] = {}
    files_beside_name: ClassVar[bool] = False

    def __init__(self, data: RecipeArguments):
        files = (data.forget_file, data.retain_file)
        if data.dataset_name is not None and files != (None, None) and not self.files_beside_name:
            raise ValueError("Give either --dataset_name, or --forget_file and --retain_file, not both.")
        self.data = data
        self.limit = rows_or_all(data.evaluation_samples)
        self.headline: Mapping[str, tuple[str, str]] = get_suite(self.suite).headline

    def small_model(self, cache: Path, seed: int = 0, retrained: bool = False) -> str:
        """Folder of a small Llama that knows the bundled example, or (`retrained`) all of it but the forget set."""
        raise NotImplementedError

    def reading(self) -> Any:
        """How a report reads the task's numbers: as its suite, what the task keeps first."""
        suite = get_suite(self.suite)
        first = self.utility_metric or next(iter(suite.utility_metrics))
        kept = {first: suite.utility_metrics[first], **suite.utility_metrics}
        return SimpleNamespace(headline=self.headline, forget_metrics=suite.forget_metrics, utility_metrics=kept)

    def training_sets(self, qa: QAFormat) -> tuple[Any, Any]:
        """The forget and the retain set in a TRL format."""
        return load_forget_and_retain(self.data, qa)

    def evaluation_sets(self, qa: QAFormat, limit: int | None) -> Any:
        """What `evaluate` measures on: `limit` rows of each set, None for all."""
        raise NotImplementedError

    def evaluate(self, model: Any, qa: QAFormat, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        """Measure a model with the task's suite.

        Args:
            model: on its device.
            qa: how the model writes questions and answers.
            sets: what `evaluation_sets` gave.
            reference: results of the retrained model, or the path of their file, for suites that compare with them.
            **passes: batch_size, across_processes and progress.
        """
        raise NotImplementedError

    def attack_sets(self, qa: QAFormat) -> Mapping[str, Any]:
        """Rows with `question` and `answer` that attacks measure on ("forget") and relearn from ("retain")."""
        raise NotImplementedError

    def attack_format(self, qa: QAFormat) -> QAFormat:
        """How the questions and answers of `attack_sets` become text."""
        return qa

    def check_attacks(self, attacks: Iterable[str]) -> None:
        """Refuse attacks that say nothing about this task.

        Raises:
            ValueError: there is one; the message says why.
        """
        for attack in attacks:
            if attack in self.refused_attacks:
                reason = self.refused_attacks[attack]
                raise ValueError(f"The attack {attack!r} cannot be run on the task {self.name!r}: {reason}.")

    @property
    def teaches_given_model(self) -> bool:
        """Whether `reference_model` trains a given model first, and does not return it as it is."""
        return False

    def reference_model(self, path: str | None, cache: Path, seed: int, size: int) -> str:
        """Folder of the model that a study of single weights makes forget `size` examples.

        Args:
            path: of the given model; None for the small Llama of this seed.
            cache: where models are kept that are trained for it.
            seed: of the run.
            size: number of forget examples.
        """
        return path or self.small_model(cache, seed)

    def subject(self, reference: str, given: str | None, cache: Path, seed: int, size: int) -> Subject:
        """The reference model with the sets that a study of single weights trains and measures on.

        Args:
            reference: what `reference_model` gave.
            given, cache, seed, size: as for `reference_model`.
        """
        tokenizer = AutoTokenizer.from_pretrained(reference)
        sets = self.examples(self.data.qa_format(tokenizer, reference), seed, size)
        retrained = self.data.retrained_model
        if given is None and retrained is None:
            retrained = self.small_model(cache, seed, retrained=True)
        model = load_shared(reference) if reference == given else load(reference)
        return Subject(model, tokenizer, sets, None if retrained is None else load(retrained), self.details)

    def examples(self, qa: QAFormat, seed: int, size: int) -> dict[str, list[Example]]:
        """Tokenized sets: `size` forget examples, and twice as many to retain and unseen ones.

        The unseen ones are drawn from the retain set, so that the model knows them as well.

        Raises:
            ValueError: the task has fewer examples.
        """
        prepare = DatasetPreparation(qa.tokenizer, max_length=1024)
        forget, known = (
            prepare(rows, name) for rows, name in zip(self.training_sets(qa), ("forget", "retain"), strict=True)
        )
        if len(forget) < size or len(known) < 4 * size:
            raise ValueError(
                f"{size} examples to forget need as many, and four times as many others: the task {self.name!r} has "
                f"{len(forget)} and {len(known)}. Take fewer --examples."
            )
        others = list(known)
        random.Random(seed).shuffle(others)
        return {
            "forget": list(forget.select(range(size))),
            "retain": others[: 2 * size],
            "unseen": others[2 * size : 4 * size],
        }

    @property
    def details(self) -> dict[str, Any]:
        """What a study notes about its sets."""
        return {}


_tasks: dict[str, type[Task]] = {}
TaskClass = TypeVar("TaskClass", bound=type[Task])


def register_task(task: TaskClass) -> TaskClass:
    """Decorator: enter a `Task` subclass under its name."""
    _tasks[task.name] = task
    return task


def task_class(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in _tasks:
        raise ValueError(f"Unknown task {name!r}. Known: {', '.join(sorted(_tasks))}.")
    return _tasks[name]


def list_tasks() -> list[str]:
    """All names, sorted."""
    return sorted(_tasks)
