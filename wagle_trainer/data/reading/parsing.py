"""The rows of a text: JSON, JSON lines, CSV, TSV, or passages between empty lines."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Rows = list[dict[str, Any]]

# Names of lists of messages: an object that has one of them is a row, not a file's list of rows.
MESSAGE_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog")
_DIGITS_OF_INT64 = 18


def parse_json(text: str, split: str | None, notes: list[str]) -> Rows:
    """The rows of JSON: lines, a list of objects, an object that holds such a list, or columns.

    Args:
        text: of the file.
        split: which list, where an object holds several.
        notes: what was found under which name is added here.

    Raises:
        ValueError: no JSON, or none that stands for rows.
    """
    if not text.strip():
        return []
    try:
        return _rows_in(_loads(text), split, notes)
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if len(lines) < 2 or not _is_json(lines[0][1]):
            raise ValueError(f"{error.msg} in line {error.lineno}, column {error.colno}.") from error
    _check_split(split, ())
    return [_row_of_line(number, line) for number, line in lines]


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_int, parse_constant=lambda _: None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply.") from error


def _int(digits: str) -> int | str:
    """A whole number; one that no table can hold stays as it is written."""
    return int(digits) if len(digits) <= _DIGITS_OF_INT64 else digits


def _is_json(text: str) -> bool:
    try:
        _loads(text)
    except ValueError:
        return False
    return True


def _row_of_line(number: int, line: str) -> dict[str, Any]:
    try:
        value = _loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {number}, column {error.colno}.") from error
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError(f"line {number} holds a {type(value).__name__}, not an object with names and values.")
    return value


def _rows_in(value: Any, split: str | None, notes: list[str]) -> Rows:
    lists = {name: rows for name, rows in value.items() if _is_rows(name, rows)} if isinstance(value, dict) else {}
    _check_split(split, lists)
    if isinstance(value, list):
        return _listed_rows(value)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not rows.")
    if lists:
        name = split or next(iter(lists))
        if len(lists) > 1 and split is None:
            raise ValueError(f"it holds several lists of rows: name one, FILE::{name}. They are {', '.join(lists)}.")
        notes.append(f"rows under {name!r}")
        return lists[name]
    if value and all(isinstance(entry, dict) for entry in value.values()):
        return list(value.values())
    lengths = {len(entry) if isinstance(entry, list) else -1 for entry in value.values()}
    if len(lengths) == 1 and lengths != {-1} and not any(name.lower() in MESSAGE_COLUMNS for name in value):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return [value]


def _check_split(split: str | None, lists: Iterable[str]) -> None:
    """Raise ValueError where a named list of rows is not there: another one must not be read in its place."""
    if split is not None and split not in lists:
        raise ValueError(f"it has no list of rows under {split!r}; such lists are: {', '.join(lists) or 'none'}.")


def _is_rows(name: str, value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and name.lower() not in MESSAGE_COLUMNS
        and all(isinstance(entry, dict) for entry in value)
    )


def _listed_rows(values: list[Any]) -> Rows:
    rows: Rows = []
    for index, value in enumerate(values):
        if isinstance(value, str):
            rows.append({"text": value})
        elif isinstance(value, dict):
            rows.append(value)
        else:
            raise ValueError(f"entry {index} is a {type(value).__name__}, not an object with names and values.")
    return rows


def parse_csv(text: str, delimiter: str | None, notes: list[str]) -> Rows:
    """The rows of CSV. Cells are text as they stand: an answer may be 0171 or None; only an empty cell is missing.

    Args:
        text: of the file.
        delimiter: between cells; None for the one of `,;|` and the tab that makes most columns of the first line.
        notes: which delimiter it was is added here, if not a comma.

    Raises:
        ValueError: a row has more or fewer cells than the first line, or two columns have one name.
    """
    csv.field_size_limit(2**31 - 1)  # a cell may hold a book
    first, _, rest = text.partition("\n")
    if re.fullmatch(r"sep=.\r?", first):  # written by Excel
        delimiter, text = first[4], rest
    if delimiter is None:
        delimiter = _likely_delimiter(text)
    if delimiter != ",":
        notes.append(f"cells separated by {'tabs' if delimiter == chr(9) else repr(delimiter)}")
    try:
        return _cells(text, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        if delimiter == "\t":  # most programs write quotation marks into TSV as they are
            return _cells(text, delimiter, csv.QUOTE_NONE)
        raise ValueError(f"{error}. Is a quotation mark missing, or one too many?") from error


def _likely_delimiter(text: str) -> str:
    def columns(delimiter: str) -> int:
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))

    return max(",;\t|", key=columns)  # of equal ones the first


def _cells(text: str, delimiter: str, quoting: Any) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    names = [name.strip() for name in next(reader, [])]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are named {twice!r}. Rename one.")
    rows: Rows = []
    for cells in reader:
        if not any(cells):
            continue
        if len(cells) < len(names) or any(cells[len(names) :]):
            raise ValueError(
                f"line {reader.line_num} has not as many cells as the first line. Put quotes around cells with "
                f"{'commas' if delimiter == ',' else repr(delimiter)}."
            )
        rows.append({name: cell or None for name, cell in zip(names, cells, strict=False)})
    return rows


def parse_passages(text: str) -> Rows:
    """A row with `text` for each passage between empty lines."""
    passages = re.split(r"\r?\n[ \t]*\r?\n", text)
    return [{"text": passage.strip()} for passage in passages if passage.strip()]


def parse_list(text: str) -> list[Any] | None:
    """The list that a cell of a table holds as JSON or as Python writes it; None if it holds none."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, list | tuple):
            return list(value)
    return None


def as_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Name -> values, with None where a row has no value; names in the order of their first appearance."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _of_one_type([row.get(name) for row in rows]) for name in names}


def _of_one_type(values: list[Any]) -> list[Any]:
    """Whole and other numbers in one column as text: a table would make 2.0 of 2."""
    if {int, float} <= {type(value) for value in values}:
        return [str(value) if type(value) in (int, float) else value for value in values]
    return values
