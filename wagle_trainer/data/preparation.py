"""Token ids and labels of a raw set in any TRL format, by TRL's own preparation.

`SFTTrainer._prepare_dataset` is private and a method. This file is the one place that calls it;
`tests/data/test_preparation.py` fails if a new TRL release changes what it needs or gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from trl import SFTTrainer, get_training_chat_template
from trl.chat_template_utils import has_generation_markers
from trl.data_utils import maybe_extract_prompt

from wagle_trainer.data.dataset_checks import columns_of_format, is_conversational, name_rows
from wagle_trainer.data.no_cache import without_cache
from wagle_trainer.data.padding import without_padding
from wagle_trainer.data.qa_format import pinned_variables
from wagle_trainer.models.log_probs import IGNORE_INDEX

# What chat templates take besides the messages.
KWARGS = "chat_template_kwargs"
OF_THE_TEMPLATE = ("tools", KWARGS)


def prepare_by_its_own_format(
    trainer: SFTTrainer, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, name: str
) -> Any:
    """`SFTTrainer._prepare_dataset`, but each set decides for itself whether its prompts carry a loss (TRL decides by
    the first row of the training set), and preference sets are taken too: what must be forgotten of a set whose name
    begins with "forget", the chosen answers of any other."""
    with without_cache() if name.startswith("forget") else nullcontext():
        if isinstance(dataset, Dataset):
            if "input_ids" in dataset.column_names:
                dataset = without_padding(dataset, getattr(processing_class, "tokenizer", processing_class), name)
            if is_preference(dataset):
                dataset = as_prompt_completion(dataset, "rejected" if name.startswith("forget") else "chosen")
            dataset = in_one_format(dataset, args.dataset_text_field, formatting_func)
            dataset = with_pinned_date(dataset, processing_class)
            formatting_func = None
        trainer.completion_only_loss = args.completion_only_loss
        if args.completion_only_loss is None:
            trainer.completion_only_loss = {"prompt", "completion"} <= set(dataset.column_names or next(iter(dataset)))
        return SFTTrainer._prepare_dataset(trainer, dataset, processing_class, args, packing, formatting_func, name)


def in_one_format(dataset: Dataset, text_field: str, formatting_func: Any = None) -> Dataset:
    """The columns of a set's format alone: text, where `formatting_func` makes it.

    TRL takes a `prompt` beside `messages` for one part of a prompt-completion example, and puts no end to a completion that
    has a `text` beside it; a formatted text it does not read where there are messages.
    """
    columns = columns_of_format(dataset.column_names, text_field)
    if columns == ("input_ids",):
        return dataset
    if formatting_func is not None:
        return dataset.map(
            lambda example: {text_field: formatting_func(example)},
            remove_columns=[column for column in dataset.column_names if column != text_field],
            desc="Applying formatting function",
        )
    return dataset if columns is None else _select(dataset, columns)


def with_pinned_date(dataset: Dataset, processing_class: Any) -> Dataset:
    """Return a set of messages with a fixed date, where the chat template would print today's.

    Tokens, masks and checkpoints are the same on every day then. A row's own `chat_template_kwargs` count more.
    """
    template = getattr(processing_class, "chat_template", None)
    if not template or len(dataset) == 0 or not is_conversational(dataset):
        return dataset
    pinned = pinned_variables(processing_class)
    if not pinned:
        return dataset

    given = dataset[KWARGS] if KWARGS in dataset.column_names else [None] * len(dataset)
    kept = [{key: value for key, value in (row or {}).items() if value is not None} for row in given]
    without = dataset.remove_columns(KWARGS) if KWARGS in dataset.column_names else dataset
    return without.add_column(KWARGS, [pinned | row for row in kept])  # in memory: no copy of the set in a cache


def _select(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """These columns, and what chat templates take besides."""
    return dataset.select_columns([*columns, *(name for name in OF_THE_TEMPLATE if name in dataset.column_names)])


class DatasetPreparation(SFTTrainer):
    """TRL's data set preparation without a trainer, for callbacks that live in other trainers.

    Args:
        processing_class: the tokenizer.
        max_length: longest sequence in tokens; None for no limit.
        text_field: column of language-modelling text.
        num_proc: processes for `Dataset.map`.
        completion_only_loss: no labels on prompts; None to decide by the format of each set.
        assistant_only_loss: labels on what the assistant says in conversations only.
        truncation_mode: which end of a longer sequence is kept: "keep_start" or "keep_end".
    """

    def __init__(
        self,
        processing_class: Any,
        *,
        max_length: int | None,
        text_field: str = "text",
        num_proc: int | None = None,
        completion_only_loss: bool | None = None,
        assistant_only_loss: bool = False,
        truncation_mode: str = "keep_start",
    ):
        # Deliberately not SFTTrainer.__init__, which needs a model: only what `_prepare_dataset` reads.
        self.processing_class = processing_class
        self._tokenizer = getattr(processing_class, "tokenizer", processing_class)  # of a multimodal model's processor
        # As there: the template with marks around what the assistant says, unless the tokenizer's has them.
        self.chat_template = None
        if assistant_only_loss and not has_generation_markers(processing_class.chat_template or ""):
            self.chat_template = get_training_chat_template(processing_class)
        self.args = SimpleNamespace(
            max_length=max_length,
            truncation_mode=truncation_mode,
            dataset_text_field=text_field,
            dataset_num_proc=num_proc,
            assistant_only_loss=assistant_only_loss,
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

    Examples without a target token are left out, and answers cut short, with warnings that count them.
    """

    def run(dataset: Dataset, max_length: int | None, formatting_func: Any = None) -> Dataset:
        # Pairs are drawn in an order of their own, and errors name rows: nothing is shuffled here.
        args = SimpleNamespace(**{**vars(trainer.args), "shuffle_dataset": False, "max_length": max_length})
        prepared = trainer._prepare_dataset(dataset, trainer.processing_class, args, False, formatting_func, name)
        return prepared.select_columns(["input_ids", "labels"]).with_format(None)

    # Whole at first: beyond the limit, TRL cuts answers short and drops examples without a word.
    whole, limit = run(dataset, None, formatting_func), trainer.args.max_length
    without, cut, shortened = [], [], []
    for row, labels in enumerate(whole["labels"]):
        kept, lost = _split(labels, limit, trainer.args.truncation_mode)
        if not _any_label(labels):
            without.append(row)
        elif not _any_label(kept):
            cut.append(row)
        elif any(token != IGNORE_INDEX for token in lost):
            shortened.append(row)
    if cut:
        raise ValueError(
            f"{len(cut)} of {len(dataset)} examples of the {name} set have no answer token within "
            f"max_length={limit} ({name_rows(cut)}): the prompt alone fills it. Raise max_length, or take these "
            "examples out."
        )
    if len(without) == len(dataset):
        raise ValueError(f"No example of the {name} set has a target token: all labels are -100.")
    if shortened:
        warnings.warn(
            f"{len(shortened)} of {len(dataset)} examples of the {name} set are longer than max_length={limit} "
            f"({name_rows(shortened)}), and part of their answer or text is cut off: the run does not see it. Raise "
            "max_length, or make several examples of each.",
            stacklevel=2,
        )
    if without:
        warnings.warn(
            f"{len(without)} of {len(dataset)} examples of the {name} set have no target token ({name_rows(without)}) "
            "and are skipped.",
            stacklevel=2,
        )
        whole = whole.select(sorted(set(range(len(whole))) - set(without)))
    fits = limit is None or all(len(labels) <= limit for labels in whole["labels"])
    return whole if fits else run(whole, limit)


def _split(labels: list[int], limit: int | None, mode: str) -> tuple[list[int], list[int]]:
    """What is kept of the labels, and what is cut off."""
    if limit is None or len(labels) <= limit:
        return labels, []
    return (labels[-limit:], labels[:-limit]) if mode == "keep_end" else (labels[:limit], labels[limit:])


def _any_label(labels: list[int]) -> bool:
    """Whether any token can be learned or forgotten: not the first one, which nothing predicts."""
    return any(token != IGNORE_INDEX for token in labels[1:])


def target_counts(dataset: Dataset) -> list[int]:
    """Return the number of target tokens of each example of a tokenized set."""
    return [sum(label != IGNORE_INDEX for label in labels[1:]) for labels in dataset["labels"]]


def is_preference(dataset: Dataset) -> bool:
    """Whether the set has TRL's preference format."""
    return {"chosen", "rejected"} <= set(dataset.column_names)


def as_prompt_completion(dataset: Dataset, answer: str) -> Dataset:
    """The "chosen" or the "rejected" answers of a preference set, as prompt-completion."""
    with without_cache():
        dataset = dataset.map(maybe_extract_prompt, desc="Extracting prompts")
    return _select(dataset, ["prompt", answer]).rename_column(answer, "completion")


def with_refusals(dataset: Dataset, refusal: Any) -> Dataset:
    """A prompt-completion set with `refusal(row)` in place of each completion.

    Raises:
        ValueError: the set has no prompts.
    """
    if not {"prompt", "completion"} <= set(dataset.column_names):
        raise ValueError(
            "This objective needs a chosen answer for every forget example. Give the forget set as\n"
            '  {"prompt": ..., "chosen": what to say instead, "rejected": what to forget}   or as\n'
            '  {"prompt": ..., "completion": what to forget}, and refusals=["I don\'t know.", ...] to the trainer.\n'
            f"It has the columns {', '.join(dataset.column_names)}."
        )

    def replace(example: dict[str, Any], row: int) -> dict[str, Any]:
        text = refusal(row)
        answer = example["completion"]
        if isinstance(answer, str):
            return {"completion": answer[: len(answer) - len(answer.lstrip())] + text}
        return {"completion": [{"role": "assistant", "content": text}]}

    with without_cache():
        return _select(dataset, ["prompt", "completion"]).map(replace, with_indices=True, desc="Adding refusals")
