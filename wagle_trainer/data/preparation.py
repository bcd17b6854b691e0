"""From a raw set in any TRL format to token ids and labels, by TRL's own preparation.

`SFTTrainer._prepare_dataset` is private and a method. This file is the one place that calls it;
`tests/data/test_preparation.py` fails if a new TRL release changes what it needs or gives.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from trl import SFTTrainer
from trl.data_utils import get_dataset_column_names, maybe_extract_prompt

from wagle_trainer.likelihood import IGNORE_INDEX


def prepare_by_its_own_format(
    trainer: SFTTrainer, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, name: str
) -> Any:
    """`SFTTrainer._prepare_dataset`, but each set decides for itself whether its prompts carry a loss (TRL decides by
    the first row of the training set), and preference sets are taken too: what must be forgotten of a set whose name
    begins with "forget", the chosen answers of any other."""
    if isinstance(dataset, Dataset) and is_preference(dataset):
        dataset = as_prompt_completion(dataset, "rejected" if name.startswith("forget") else "chosen")
    trainer.completion_only_loss = args.completion_only_loss
    if args.completion_only_loss is None:
        trainer.completion_only_loss = {"prompt", "completion"} <= set(get_dataset_column_names(dataset))
    return SFTTrainer._prepare_dataset(trainer, dataset, processing_class, args, packing, formatting_func, name)


class DatasetPreparation(SFTTrainer):
    """TRL's data set preparation without a trainer, for callbacks that live in other trainers.

    Args:
        processing_class: the tokenizer.
        max_length: longest sequence in tokens; None for no limit.
        text_field: column of language-modelling text.
        num_proc: processes for `Dataset.map`.
        completion_only_loss: no labels on prompts; None to decide by the format of each set.
    """

    def __init__(
        self,
        processing_class: Any,
        *,
        max_length: int | None,
        text_field: str = "text",
        num_proc: int | None = None,
        completion_only_loss: bool | None = None,
    ):
        # Deliberately not SFTTrainer.__init__, which needs a model: only what `_prepare_dataset` reads.
        self.processing_class = self._tokenizer = processing_class
        self.chat_template = None
        self.args = SimpleNamespace(
            max_length=max_length,
            truncation_mode="keep_start",
            dataset_text_field=text_field,
            dataset_num_proc=num_proc,
            assistant_only_loss=False,
            completion_only_loss=completion_only_loss,
        )

    def __call__(self, dataset: Dataset, name: str) -> Dataset:
        """Tokenize one set. See `prepare` for the errors."""
        return prepare(self, dataset, name)

    _prepare_dataset = prepare_by_its_own_format


def prepare(trainer: SFTTrainer, dataset: Dataset, name: str, formatting_func: Any = None) -> Dataset:
    """Tokenize `dataset` as `trainer` does its training set, and refuse examples whose answer would be cut off.

    Returns:
        A set with `input_ids` and `labels` (-100 = no loss).

    Raises:
        ValueError: no answer token of some example lies within `max_length` (names the rows), or no example has any.

    Examples without a label token are left out, with a warning that counts them.
    """

    def run(**changes: Any) -> Dataset:
        # Pairs are drawn in an order of their own, and errors name rows: nothing is shuffled here.
        args = SimpleNamespace(**{**vars(trainer.args), "shuffle_dataset": False, **changes})
        return trainer._prepare_dataset(dataset, trainer.processing_class, args, False, formatting_func, name)

    prepared, limit = run(), trainer.args.max_length
    if limit is None or len(prepared) < len(dataset):  # beyond the limit, TRL drops such examples without a word
        kept = slice(None, limit) if trainer.args.truncation_mode == "keep_start" else slice(-(limit or 0), None)
        all_labels = (prepared if limit is None else run(max_length=None))["labels"]
        without = [row for row, labels in enumerate(all_labels) if not _any_label(labels)]
        cut = [row for row, labels in enumerate(all_labels) if _any_label(labels) and not _any_label(labels[kept])]
        if cut:
            raise ValueError(
                f"{len(cut)} of {len(dataset)} examples of the {name} set have no answer token within "
                f"max_length={limit} ({_rows(cut)}): the prompt alone fills it. Raise max_length, or take these "
                "examples out."
            )
        if len(without) == len(dataset):
            raise ValueError(f"No example of the {name} set has a label token: all labels are -100.")
        if without:
            warnings.warn(
                f"{len(without)} of {len(dataset)} examples of the {name} set have no label token ({_rows(without)}) "
                "and are skipped.",
                stacklevel=2,
            )
            prepared = prepared.filter(lambda example: _any_label(example["labels"]))
    return prepared.select_columns(["input_ids", "labels"])


def _any_label(labels: list[int]) -> bool:
    return any(token != IGNORE_INDEX for token in labels)


def _rows(rows: list[int]) -> str:
    return f"rows {', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}"


def is_preference(dataset: Dataset) -> bool:
    """Whether the set has TRL's preference format."""
    return {"chosen", "rejected"} <= set(dataset.column_names)


def as_prompt_completion(dataset: Dataset, answer: str) -> Dataset:
    """The "chosen" or the "rejected" answers of a preference set, as prompt-completion."""
    dataset = dataset.map(maybe_extract_prompt, desc="Extracting prompts")
    return dataset.select_columns(["prompt", answer]).rename_column(answer, "completion")


def with_refusals(dataset: Dataset, refusal: Any) -> Dataset:
    """A prompt-completion set with `refusal(row)` in place of each completion.

    Raises:
        ValueError: the set has no prompts.
    """
    if not {"prompt", "completion"} <= set(dataset.column_names):
        raise ValueError(
            "This objective needs a preferred answer for every forget example. Give the forget set as\n"
            '  {"prompt": ..., "chosen": what to say instead, "rejected": what to forget}   or as\n'
            '  {"prompt": ..., "completion": what to forget}, and refusals=["I don\'t know.", ...] to the trainer.\n'
            f"It has the columns {', '.join(dataset.column_names)}."
        )

    def replace(example: dict[str, Any], row: int) -> dict[str, Any]:
        text = refusal(row)
        if isinstance(example["completion"], str):
            return {"completion": f" {text}" if example["completion"].startswith(" ") else text}
        return {"completion": [{"role": "assistant", "content": text}]}

    columns = [column for column in dataset.column_names if column not in ("prompt", "completion")]
    return dataset.map(replace, with_indices=True, remove_columns=columns, desc="Adding refusals")
