"""Which sets to forget and to keep, as arguments of a command line or of a YAML file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.sources import READERS, load_rows, read_file

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from wagle_trainer.data.qa_format import QAFormat


@dataclass
class DataArguments:
    """TOFU by name, or two files (or datasets) of your own."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A hub id (locuslab/TOFU), a folder of <split>.json files, or the bundled 'fictional'."},
    )
    forget_split: str = field(default="forget10", metadata={"help": "forget01, forget05 or forget10."})
    forget_file: str | None = field(
        default=None,
        metadata={
            "help": "What to forget, in place of dataset_name: a .json, .jsonl, .csv or .parquet file (or a hub id) with the "
            "columns question and answer, or in any TRL format: prompt and completion; prompt, chosen and rejected; "
            "messages; text."
        },
    )
    retain_file: str | None = field(default=None, metadata={"help": "What to keep, in the same way."})
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
    forget, retain = (_in_a_trl_format(str(file), qa) for file in files)
    return forget, retain


def read_rows(file: str) -> Dataset:
    """The rows of a .json, .jsonl, .csv or .parquet file, or of a hub dataset's split "train".

    Raises:
        FileNotFoundError: there is no such file or dataset.
        ValueError: a file of another kind, or one that cannot be read.
    """
    path = Path(file).expanduser()
    if path.suffix in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {file}.")
        return read_file(path)
    if path.is_file():
        raise ValueError(f"{file} is of no known kind; known are {', '.join(READERS)}.")
    return load_rows(file, "train")


def _in_a_trl_format(file: str, qa: QAFormat) -> Dataset:
    rows = read_rows(file)
    if not {"question", "answer"} <= set(rows.column_names):
        return rows
    try:
        return qa.dataset(rows)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
