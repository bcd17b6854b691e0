"""Checks of sets and tokenizer, before any work is done."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from transformers.utils import logging

logger = logging.get_logger(__name__)

FORMATS = (
    '  language modelling  {"text": "..."} or {"messages": [...]}\n'
    '  prompt-completion   {"prompt": "...", "completion": "..."} (text or messages)\n'
    '  preference          {"prompt": "...", "chosen": "...", "rejected": "..."}; rejected is what must be forgotten\n'
    '  tokenized           {"input_ids": [...], "labels": [...]}'
)


def check_set(dataset: Any, name: str, text_field: str = "text", formatting_func: Any = None) -> None:
    """Refuse a set that is missing, empty, not indexable or in no known format, and rows that deviate from it.

    Raises:
        ValueError: missing, empty, or unknown columns (the message shows the formats); a row without text, of another
            kind than the first one, or with more or fewer labels than tokens (the message names it).
        TypeError: not a `datasets.Dataset`.
    """
    if dataset is None:
        raise ValueError(
            f"The {name} set is missing. Pass {name}_dataset=..., or a train_dataset with the splits "
            '"forget" and "retain".'
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"The {name} set must be a datasets.Dataset, which can be indexed, got {type(dataset).__name__}. "
            "Pairs of forget and retain examples need random access: load it without streaming."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} set is empty.")
    if formatting_func is not None:
        return
    columns = columns_of_format(dataset.column_names, text_field)
    if columns is None:
        raise ValueError(
            f"The {name} set has the columns {', '.join(sorted(dataset.column_names))}, which is no format that TRL "
            f"knows:\n{FORMATS}\n"
            "read_examples(file, question_column=..., answer_column=...).training_set(QAFormat.for_tokenizer(tokenizer)) makes "
            "one of a file; for questions and answers, QAFormat.for_tokenizer(tokenizer).dataset(...) does."
        )
    if columns == ("input_ids",):
        _check_tokens(dataset.with_format(None), name)
    else:
        _check_texts(dataset.with_format(None), name, columns, text_field)


def columns_of_format(columns: Iterable[str], text_field: str = "text") -> tuple[str, ...] | None:
    """Return the columns that hold the examples; None if the set has no known format."""
    forms = (
        ("chosen", "rejected"),
        ("input_ids",),
        ("prompt", "completion"),
        ("messages",),
        ("conversations",),
        (text_field,),
    )
    return next((form for form in forms if set(form) <= set(columns)), None)


def _check_tokens(rows: Dataset, name: str) -> None:
    lists = ("input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks")
    columns = [column for column in lists if column in rows.column_names]
    for row, values in enumerate(zip(*(rows[column] for column in columns), strict=True)):
        if None in values or len({len(tokens) for tokens in values}) > 1:
            raise ValueError(
                f"Row {row} of the {name} set does not hold lists of the same length in {', '.join(columns)}. Fix the "
                "row, or take it out."
            )


def _check_texts(rows: Dataset, name: str, columns: tuple[str, ...], text_field: str) -> None:
    wanted = ["text"] if columns == (text_field,) else ["messages"] if len(columns) == 1 else ["text", "messages"]
    first = _kind(rows[0][columns[0]], columns[0])
    example = ""
    if first in wanted:
        wanted, example = [first], f" as row 0 in {columns[0]!r}"
    if columns[0] == "chosen" and first == "text" and "prompt" in rows.column_names:
        columns = ("prompt", *columns)
    for column in columns:
        silent = []
        for row, value in enumerate(rows[column]):
            kind = _kind(value, column)
            if kind not in wanted:
                raise ValueError(
                    f"Row {row} of the {name} set holds {kind} in the column {column!r}, not {' or '.join(wanted)}{example}. "
                    "Fix the row, or take it out."
                )
            if column in ("messages", "conversations"):
                _check_assistant(value, row, name, column)
            if column != "prompt" and _says_nothing(value):
                silent.append(row)
        if column == "conversations" and (renamed := _other_speakers(rows[column])):
            warnings.warn(
                f"The {name} set has the speakers {', '.join(renamed)}, which TRL writes into the chat template as they are: a "
                "model that knows user and assistant does not know them. read_examples(file) renames them.",
                stacklevel=3,
            )
        if silent:
            warnings.warn(
                f"{len(silent)} of {len(rows)} examples of the {name} set have an empty answer in the column {column!r} "
                f"({name_rows(silent)}): all there is to learn or to forget in them is to say nothing.",
                stacklevel=3,
            )


def _check_assistant(turns: list[dict[str, Any]], row: int, name: str, column: str) -> None:
    speakers = [turn.get("role", turn.get("from")) for turn in turns]
    if not any(speaker in ("assistant", "gpt") for speaker in speakers):
        raise ValueError(
            f"Row {row} of the {name} set has no turn of the assistant in the column {column!r}: its speakers are "
            f"{', '.join(map(str, dict.fromkeys(speakers)))}. Fix the row, or take it out."
        )


def _other_speakers(conversations: Iterable[list[dict[str, Any]]]) -> list[str]:
    """ShareGPT's names of user and assistant that are used."""
    return sorted({"human", "gpt"} & {turn["from"] for turns in conversations for turn in turns})


def _says_nothing(value: Any) -> bool:
    """Whether an answer is an empty text; a call of a tool has no text, but is no empty answer."""
    if isinstance(value, str):
        return not value.strip()
    last = value[-1]
    text = last.get("content", last.get("value"))
    return isinstance(text, str) and not text.strip() and not last.get("tool_calls")


def _kind(value: Any, column: str) -> str:
    """ "text" or "messages", or else what `value` is."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return f"a value of type {type(value).__name__}"
    if not value:
        return "an empty list"
    keys = {"from", "value"} if column == "conversations" else {"role"}
    if all(isinstance(message, dict) and keys <= message.keys() for message in value):
        return "messages"
    return f"a list of values that are no messages with {' and '.join(sorted(keys))}"


def name_rows(rows: Sequence[int]) -> str:
    """The first of some rows, for a message."""
    return f"rows {', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}"


def check_chat_template(dataset: Dataset, name: str, processing_class: Any) -> None:
    """Raise ValueError if a conversational set meets a tokenizer without a chat template, or one that refuses a row."""
    if not is_conversational(dataset):
        return
    if getattr(processing_class, "chat_template", None) is None:
        raise ValueError(
            f"The {name} set is conversational, but the tokenizer has no chat template. Set tokenizer.chat_template "
            "(or chat_template_path), or pass text: for questions and answers, "
            'QAFormat.for_tokenizer(tokenizer, style="plain").dataset(...).'
        )
    if hasattr(processing_class, "tokenizer"):
        return  # TRL rewrites messages for a multimodal model's processor
    columns = columns_of_format(dataset.column_names) or ()
    for row, example in enumerate(dataset.with_format(None)):
        where = f"Row {row} of the {name} set"
        prompt = example.get("prompt") or []
        if columns in (("prompt", "completion"), ("chosen", "rejected")):
            if prompt:
                _check_rendering(processing_class, prompt, example, where, add_generation_prompt=True)
            for answer in (example[column] for column in columns if column != "prompt"):
                _check_rendering(processing_class, [*prompt, *answer], example, where)
        else:
            _check_rendering(processing_class, example[columns[0]], example, where)


def _check_rendering(
    processing_class: Any, turns: list[Any], example: dict[str, Any], where: str, add_generation_prompt: bool = False
) -> None:
    from trl import maybe_convert_to_chatml

    turns = maybe_convert_to_chatml({"messages": [dict(turn) for turn in turns]})["messages"]
    tools = example.get("tools")
    options = example.get("chat_template_kwargs") or {}
    with naming_template(where):
        text = processing_class.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            **options,
        )
    parts = next((part for turn in turns for part in _parts(turn.get("content")) if str(part) in text), None)
    if parts is not None:
        raise ValueError(
            f"{where} cannot be written with this template: it prints the parts of a content as Python does, such as {parts}. "
            "Write the content as one text."
        )


def _parts(content: Any) -> list[Any]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


@contextmanager
def naming_template(where: str) -> Iterator[None]:
    """Turn whatever a chat template raises into a ValueError that names the row.

    Templates are programs: their errors are of any type.
    """
    try:
        yield
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ValueError(
            f"{where} cannot be written with this template: {what}. Fix the row, take it out, or give the tokenizer another "
            "chat template."
        ) from error


def check_eos_token(dataset: Dataset, name: str, processing_class: Any) -> None:
    """Raise ValueError if a set of text, which TRL ends with the end-of-sequence token, meets a tokenizer without one."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    tokenized = "input_ids" in dataset.column_names
    if not tokenized and not is_conversational(dataset) and getattr(tokenizer, "eos_token", None) is None:
        raise ValueError(
            f"The texts of the {name} set end with the tokenizer's end-of-sequence token, but it has none: set "
            "tokenizer.eos_token, or pass tokenized examples."
        )


def is_conversational(dataset: Dataset) -> bool:
    """Whether a set that `check_set` lets pass holds messages."""
    columns = columns_of_format(dataset.column_names)
    if columns is None or columns == ("input_ids",):
        return False
    return isinstance(dataset.with_format(None)[0][columns[0]], list)


def pad_token_id(processing_class: Any) -> int:
    """The tokenizer's pad token; one without gets its end-of-sequence token, with a log line."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is None:
        raise ValueError(
            "The trainer has no tokenizer, but the attribution needs one to tokenize and to pad its batches: pass "
            "processing_class=... to the trainer."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError("The tokenizer has neither a pad nor an eos token: set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning(f"The tokenizer has no pad token: its eos token {tokenizer.eos_token!r} is used for padding.")
    return tokenizer.pad_token_id
