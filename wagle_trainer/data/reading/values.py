"""What stands in a table's cells, as texts and as messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wagle_trainer.data.reading.parsing import parse_list

# Names that ShareGPT and others give to the speakers.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "model": "assistant",
}
_SPEAKER, _SPOKEN = ("role", "from", "speaker"), ("content", "value", "text")


def as_texts(values: Sequence[Any], column: str, notes: list[str], *, may_be_empty: bool = False) -> list[str]:
    """Each value as text: numbers as they are written, a list of one entry as that entry.

    Args:
        values: of a column.
        column: its name, for the errors.
        notes: how many numbers there were is added here.
        may_be_empty: whether a missing value is the empty text.

    Raises:
        ValueError: a row holds nothing, or no text; the message names it.
    """
    texts, numbers = [], 0
    for row, value in enumerate(values):
        if isinstance(value, list) and len({str(entry) for entry in value}) == 1:
            value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers += 1
            value = str(value)
        if value is None and may_be_empty:
            value = ""
        if not isinstance(value, str):
            raise ValueError(f"Column {column!r} must hold one string per row, but row {row} holds {_what(value)}")
        texts.append(value)
    if numbers:
        notes.append(f"{numbers} of {len(texts)} values of {column!r} are numbers and are read as text")
    return texts


def _what(value: Any) -> str:
    if value is None:
        return "nothing. Fix such rows, or take them out."
    kind = f"a value of type {type(value).__name__}."
    if isinstance(value, list):
        return f"{kind} Make one row of each of its entries first."
    return f"{kind} Fix such rows, or name another column (--question_column, --answer_column, --text_column)."


def as_messages(values: Sequence[Any], column: str, notes: list[str]) -> list[list[dict[str, Any]]]:
    """Lists of messages with `role` and `content`; speakers by the names "user", "assistant", "system" and "tool".

    Raises:
        ValueError: a row holds no messages; the message names it.
    """
    conversations, joined = [], 0
    for row, value in enumerate(values):
        if isinstance(value, str):
            value = parse_list(value)
        if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
            raise ValueError(f"Column {column!r} must hold messages, but row {row} holds {_no_messages(value)}.")
        turns = []
        for number, turn in enumerate(value):
            speaker = next((turn[name] for name in _SPEAKER if turn.get(name) is not None), None)
            if not isinstance(speaker, str):
                raise ValueError(
                    f"Message {number} of row {row} in {column!r} has neither a role nor a from: it has {', '.join(turn)}."
                )
            spoken = next((name for name in _SPOKEN if name in turn), None)
            content = turn[spoken] if spoken is not None else None
            if text := _text_of_parts(content):
                content, joined = text, joined + 1
            rest = {
                name: entry for name, entry in turn.items() if name not in (*_SPEAKER, spoken) and entry is not None
            }
            turns.append({"role": _ROLES.get(speaker.lower(), speaker.lower()), "content": content, **rest})
        conversations.append(turns)
    if joined:
        notes.append(f"{joined} messages are given in parts of text and are read as one text each")
    return conversations


def _no_messages(value: Any) -> str:
    return "nothing" if not value else f"a value of type {type(value).__name__}"


def _text_of_parts(content: Any) -> str | None:
    """The text of a content in parts, if all parts are texts."""
    if not isinstance(content, list) or not content:
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]


def as_texts_or_messages(columns: Mapping[str, Sequence[Any]], notes: list[str]) -> dict[str, list[Any]]:
    """Columns that hold either texts in every row or messages in every row.

    Args:
        columns: of one set, such as prompt and completion.
        notes: as for `as_texts`.

    Raises:
        ValueError: a row holds neither, or texts where another holds messages; the message names it.
    """
    listed = {column: [isinstance(value, list) for value in values] for column, values in columns.items()}
    convert: Callable[..., list[Any]] = as_messages if any(any(rows) for rows in listed.values()) else as_texts
    if convert is as_messages:
        for column, rows in listed.items():
            if not all(rows):
                other = next(name for name, entries in listed.items() if any(entries))
                raise ValueError(
                    f"Row {rows.index(False)} holds no messages in the column {column!r}, but others do in {other!r}. Write "
                    "either texts or messages in all rows."
                )
    return {column: convert(values, column, notes) for column, values in columns.items()}


def as_tools(values: Sequence[Any]) -> list[str | None]:
    """Descriptions of tools as JSON, which TRL reads."""
    return [value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False) for value in values]


def chosen_texts(
    answers: Sequence[Any], choices: Mapping[str, Sequence[Any]], column: str, notes: list[str]
) -> list[Any]:
    """The texts of the choices that the answers name, by number or letter; the answers where they are texts themselves.

    Args:
        answers: of the rows.
        choices: one column with lists, or several columns with one choice each.
        column: of the answers, for the errors.
        notes: that it was done is added here.

    Raises:
        ValueError: it cannot be said which choice is meant; the message says what to do.
    """
    marks = [_mark(answer) for answer in answers]
    if any(mark is None for mark in marks):
        return list(answers)
    lists = [_list_of_choices(row) for row in zip(*choices.values(), strict=True)]
    help_ = "Write the text of the answer into a column, and name it by --answer_column."
    # A number that labels a choice counts as that label; only the others are counted from 0 or from 1.
    numbers = [
        mark
        for mark, (_, labels) in zip(marks, lists, strict=True)
        if isinstance(mark, int) and str(mark) not in labels
    ]
    first = 0
    if numbers and 0 not in numbers:
        if not any(mark == len(texts) for mark, (texts, _) in zip(marks, lists, strict=True)):
            raise ValueError(
                f"The answers in {column!r} are numbers of choices, and it cannot be said whether the first is 0 or 1. {help_}"
            )
        first = 1
    found = []
    for row, (mark, (texts, labels)) in enumerate(zip(marks, lists, strict=True)):
        place = labels.index(str(mark)) if str(mark) in labels else _place(mark, first)
        if not 0 <= place < len(texts):
            raise ValueError(
                f"Row {row} has the answer {answers[row]!r} in {column!r}, but {len(texts)} choices. {help_}"
            )
        found.append(texts[place])
    notes.append(f"the answers in {column!r} name a choice: its text from {', '.join(map(repr, choices))} is read")
    return found


def _mark(answer: Any) -> int | str | None:
    """A number or a letter of a choice; None for what is neither."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    if isinstance(answer, str) and len(mark := answer.strip()) == 1:
        return int(mark) if mark in "0123456789" else mark.upper() if mark.upper() in "ABCDEFGH" else None
    return None


def _place(mark: int | str | None, first: int) -> int:
    return mark - first if isinstance(mark, int) else "ABCDEFGH".index(str(mark))


def _list_of_choices(row: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The texts of the choices of a row, and their labels if there are any, as ARC has them."""
    value = row[0] if len(row) == 1 else list(row)
    if isinstance(value, str):
        value = parse_list(value)
    if isinstance(value, Mapping) and "text" in value:
        return list(value["text"]), [str(label) for label in value.get("label") or []]
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        return [entry.get("text") for entry in value], [str(entry.get("label")) for entry in value]
    return (list(value) if isinstance(value, list) else []), []


def look_like_choices(answers: Sequence[str]) -> bool:
    """Whether all answers are single digits or letters, and the same ones come again, as numbers of choices do."""
    marks = [_mark(answer) for answer in answers]
    return len(marks) > 1 and None not in marks and len(set(marks)) <= 8
