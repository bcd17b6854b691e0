"""Which sets to forget and to keep, as arguments of a command line or of a YAML file."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.overlap import overlapping_rows
from wagle_trainer.data.reading import Examples, read_examples, read_table

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from wagle_trainer.data.qa_format import QAFormat

logger = logging.getLogger(__name__)

FILE_HELP = (
    "a file (.json, .jsonl, .csv, .tsv, .parquet, .txt, compressed or not), a folder, or a Hub id, with PLACE:CONFIG:SPLIT if "
    "need be; question and answer, prompt and completion, messages, ShareGPT, Alpaca, text and others are known by themselves"
)
READING_HELP = {
    "question_column": "Column of the questions, in files whose columns are not known by themselves.",
    "answer_column": "Column of the answers, likewise.",
    "text_column": "Column of the passages, likewise.",
    "group_column": "Column of what rows have in common, such as the person that they are about; 'group' is known.",
    "encoding": "Of text files, such as cp1252; UTF-8 if not given.",
}


@dataclass
class DataArguments:
    """TOFU by name, or two files (or datasets) of your own."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A hub id (locuslab/TOFU), a folder of <split>.json files, or the bundled 'fictional'."},
    )
    forget_split: str = field(default="forget10", metadata={"help": "forget01, forget05 or forget10."})
    forget_file: str | None = field(
        default=None, metadata={"help": f"What to forget, in place of dataset_name: {FILE_HELP}."}
    )
    retain_file: str | None = field(default=None, metadata={"help": "What to keep, in the same way."})
    question_column: str | None = field(default=None, metadata={"help": READING_HELP["question_column"]})
    answer_column: str | None = field(default=None, metadata={"help": READING_HELP["answer_column"]})
    text_column: str | None = field(default=None, metadata={"help": READING_HELP["text_column"]})
    group_column: str | None = field(default=None, metadata={"help": READING_HELP["group_column"]})
    encoding: str | None = field(default=None, metadata={"help": READING_HELP["encoding"]})
    drop_overlap: bool = field(
        default=False, metadata={"help": "Take rows out of the retain set that are in the forget set, too."}
    )
    style: str = field(
        default="auto",
        metadata={
            "help": "How questions and answers are written: 'chat' (the tokenizer's chat template), 'plain' (Question: "
            "... Answer: ...), or 'auto': chat where there is a template.",
            "choices": ["auto", "chat", "plain"],
        },
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message before each question; chat style only."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Variables of the chat template as JSON. Where it prints a date, date_string is 10 Apr 2025 by default."
        },
    )
    thinking: bool | None = field(
        default=None, metadata={"help": "Whether the model thinks first: the template's enable_thinking."}
    )
    question_prefix: str | None = field(
        default=None, metadata={"help": "Text before each question, plain style; 'Question: ' by default."}
    )
    question_suffix: str | None = field(
        default=None, metadata={"help": "Text between question and answer, plain style; '\\nAnswer:' by default."}
    )
    answer_prefix: str | None = field(
        default=None, metadata={"help": "Text at the start of each answer, plain style; a space by default."}
    )
    compatibility: str | None = field(
        default=None,
        metadata={
            "help": "'open-unlearning': the tokens and labels of OpenUnlearning's code.",
            "choices": ["open-unlearning"],
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.chat_template_kwargs, str):
            try:
                self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
            except ValueError as error:
                raise ValueError(f"chat_template_kwargs is not JSON ({error}): {self.chat_template_kwargs}") from error
        if not isinstance(self.chat_template_kwargs, dict | None):
            raise ValueError(f"chat_template_kwargs must be a JSON object, got {self.chat_template_kwargs!r}.")

    def qa_format(self, tokenizer: PreTrainedTokenizerBase, model: str | None = None) -> QAFormat:
        """How questions and answers are written: as the arguments say, or as saved beside a model.

        Args:
            tokenizer: the model's.
            model: its folder.

        Raises:
            ValueError: as `QAFormat`.
        """
        from wagle_trainer.data.qa_format import QAFormat

        options = {name: getattr(self, name) for name in FORMAT_OPTIONS}
        return QAFormat.for_model(model, tokenizer, self.style, **options)


FORMAT_OPTIONS = (
    *("system_prompt", "chat_template_kwargs", "thinking", "question_prefix", "question_suffix", "answer_prefix"),
    "compatibility",
)


def load_forget_and_retain(arguments: DataArguments, qa: QAFormat) -> tuple[Dataset, Dataset]:
    """The forget and the retain set in a TRL format; questions and answers as prompt-completion examples.

    Raises:
        ValueError: no sets are named, only one of them, or both ways at once; a file of another kind, or one that cannot be
            read or has a row without question or answer.
        FileNotFoundError: a file, folder or hub dataset is missing.
    """
    from wagle_trainer.data.tofu import load_tofu, retain_split_for

    files = (arguments.forget_file, arguments.retain_file)
    if arguments.dataset_name is None and None in files:
        raise ValueError(
            "Say what to forget and what to keep: --forget_file and --retain_file, both, or --dataset_name (a TOFU: "
            "locuslab/TOFU, a folder, or 'fictional')."
        )
    if arguments.dataset_name is not None and files != (None, None):
        raise ValueError("Give either --dataset_name, or --forget_file and --retain_file, not both.")
    if arguments.dataset_name is not None:
        splits = (arguments.forget_split, retain_split_for(arguments.forget_split))
        forget, retain = (qa.dataset(load_tofu(arguments.dataset_name, split)) for split in splits)
        return forget, retain
    sets = {name: read_set_file(str(file), arguments) for name, file in zip(("forget", "retain"), files, strict=True)}
    for examples in sets.values():
        logger.info(examples.report(qa.tokenizer))
    if arguments.drop_overlap:
        sets["retain"] = without_overlap(sets["forget"], sets["retain"])
    forget, retain = (examples.training_set(qa) for examples in sets.values())
    return forget, retain


def read_set_file(file: str, options: Any) -> Examples:
    """The examples of a file, read as the options say.

    Args:
        file: as for `read_examples`.
        options: a `DataArguments` or a namespace with the attributes that `READING_HELP` names.

    Raises:
        FileNotFoundError, ValueError: as `read_examples`.
    """
    return read_examples(file, **{name: getattr(options, name) for name in READING_HELP})


def without_overlap(forget: Examples, retain: Examples) -> Examples:
    """The retain examples that are not in the forget set; a log line says how many were.

    Raises:
        ValueError: none is left.
    """
    both = overlapping_rows(forget.rows, retain.rows)
    if not both:
        return retain
    if len(both) == len(retain):
        raise ValueError(f"All rows of {retain.source} are in {forget.source}, too: there is nothing left to keep.")
    logger.info(
        f"{retain.source}: {len(both):,} of {len(retain):,} rows are in the forget set, too, and are left out."
    )
    taken = set(both)
    rows = retain.rows.select([row for row in range(len(retain)) if row not in taken])
    return replace(retain, rows=rows, notes=[*retain.notes, f"{len(both)} rows of the forget set left out"])


def read_rows(file: str) -> Dataset:
    """All columns of a file, a folder or a hub dataset, in memory.

    Raises:
        FileNotFoundError: there is no such file or dataset.
        ValueError: a file of another kind, or one that cannot be read.
    """
    return read_table(file)
