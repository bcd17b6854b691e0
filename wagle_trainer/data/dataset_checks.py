"""Checks of sets and tokenizer, before any work is done."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
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
            "For questions and answers, QAFormat.for_tokenizer(tokenizer).dataset(...) makes prompt-completion; the "
            "command line does it for files with the columns question and answer."
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
    columns = [c for c in ("input_ids", "labels", "completion_mask", "assistant_masks") if c in rows.column_names]
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
            text = value if kind == "text" else value[-1].get("content", value[-1].get("value"))
            if column != "prompt" and isinstance(text, str) and not text.strip():
                silent.append(row)
        if silent:
            warnings.warn(
                f"{len(silent)} of {len(rows)} examples of the {name} set have an empty answer in the column {column!r} "
                f"({name_rows(silent)}): all there is to learn or to forget in them is to say nothing.",
                stacklevel=3,
            )


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
    """Raise ValueError if a conversational set meets a tokenizer without a chat template."""
    if is_conversational(dataset) and getattr(processing_class, "chat_template", None) is None:
        raise ValueError(
            f"The {name} set is conversational, but the tokenizer has no chat template. Set tokenizer.chat_template "
            "(or chat_template_path), or pass text: for questions and answers, "
            'QAFormat.for_tokenizer(tokenizer, style="plain").dataset(...).'
        )


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
