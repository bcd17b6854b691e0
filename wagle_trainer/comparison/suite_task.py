"""What `wagle compare` forgets and how it is measured: TOFU by name, or files of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wagle_trainer.data.forget_and_retain import (
    DataArguments,
    load_forget_and_retain,
    read_set_file,
    without_overlap,
)
from wagle_trainer.data.groups import with_groups
from wagle_trainer.evaluation import get_suite
from wagle_trainer.evaluation.results import without_texts


@dataclass
class MeasuredDataArguments(DataArguments):
    """Data, and how models are measured on them."""

    retrained_model: str | None = field(
        default=None,
        metadata={
            "help": "A model that never saw the forget set, to compare with; '{seed}' in its path stands for the seed."
        },
    )
    # With None in the union, the command line takes a string.
    evaluation_samples: int | str | None = field(
        default="all", metadata={"help": "Rows of each evaluation set, or 'all'."}
    )
    evaluation_batch_size: int = field(default=32, metadata={"help": "Batch size of the evaluation."})
    save_generations: bool = field(
        default=False,
        metadata={
            "help": "Also write questions, answers and what the models generate into the results, for the report's examples. "
            "By default they hold no text of the sets, since the forget set may be private."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.limit

    @property
    def limit(self) -> int | None:
        """A number of rows; None for all of them.

        Raises:
            ValueError: neither "all" nor a whole number of at least 1.
        """
        return rows_or_all(self.evaluation_samples)


def rows_or_all(value: Any) -> int | None:
    """`evaluation_samples` as a number of rows; None for all of them.

    Args:
        value: as the command line or a file gives it.

    Raises:
        ValueError: neither "all" nor a whole number of at least 1.
    """
    if value is None or str(value).lower() == "all":
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"evaluation_samples must be a whole number of at least 1, or 'all'; got {value!r}.")
    return int(value)


class SuiteTask:
    """TOFU with its suite, or files with the suite for one's own data; see `wagle_trainer.comparison.runs.Task`."""

    def __init__(self, data: MeasuredDataArguments):
        self.data, self.limit = data, data.limit
        self.name = "tofu" if data.dataset_name is not None else "custom"
        self.suite = get_suite(self.name)
        self.headline: Mapping[str, tuple[str, str]] = self.suite.headline

    def training_sets(self, qa: Any) -> tuple[Any, Any]:
        """The forget and the retain set in a TRL format."""
        return load_forget_and_retain(self.data, qa)

    def evaluation_sets(self, qa: Any, limit: int | None) -> Any:
        """The sets of the suite, with so many rows."""
        if self.name == "tofu":
            return self.suite.load(str(self.data.dataset_name), forget_split=self.data.forget_split, limit=limit)
        files = {"forget": str(self.data.forget_file), "retain": str(self.data.retain_file)}
        sets = {name: read_set_file(file, self.data) for name, file in files.items()}
        if self.data.drop_overlap:
            sets["retain"] = without_overlap(sets["forget"], sets["retain"])
        return {name: with_groups(examples.rows, None, limit) for name, examples in sets.items()}

    def evaluate(self, model: Any, qa: Any, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        """Measure a model with the suite; texts of the sets are left out, unless they are requested."""
        if self.name == "tofu":
            passes["reference"] = reference
        results = self.suite.evaluate(model, qa.tokenizer, sets, qa_format=qa, **passes)
        return results if self.data.save_generations else without_texts(results)

    def attack_sets(self, qa: Any) -> Mapping[str, Any]:
        """Questions and answers that attacks measure on and relearn from.

        Raises:
            ValueError: the files hold something else.
        """
        sets = self.evaluation_sets(qa, None)
        for name in ("forget", "retain"):
            if not {"question", "answer"} <= set(sets[name].column_names):
                raise ValueError(f"The {name} set has no questions and answers for attacks: leave out --attacks.")
        return sets
