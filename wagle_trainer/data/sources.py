"""One table of rows, from a local file or from the hub, with errors that say which one is missing or cannot be read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

# ending -> what reads it
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def read_file(path: Path) -> Dataset:
    """The rows of a .json (lines, or one list of objects), .jsonl, .csv or .parquet file.

    Raises:
        ValueError: it is empty, or not what its ending says.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        rows = (
            _read_csv(path)
            if path.suffix == ".csv"
            else load_dataset(READERS[path.suffix], data_files=str(path), split="train")
        )
    except (DatasetGenerationError, ValueError, StopIteration) as error:
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise ValueError(f"{path} has no rows.") from error
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(f"{path} could not be read as {path.suffix[1:]}: {reason}") from error
    if len(rows) == 0:
        raise ValueError(f"{path} has no rows.")
    return rows


def _read_csv(path: Path) -> Dataset:
    """Cells are text, as they stand: an answer may be 0171 or None. Only a cell with nothing in it is missing."""
    from datasets import Dataset

    csv.field_size_limit(2**31 - 1)  # a cell may hold a book
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"line {reader.line_num} has not as many cells as the first line. Put quotes around cells with commas."
                )
            rows.append({name: cell or None for name, cell in row.items()})
    return Dataset.from_list(rows)


def load_rows(
    name_or_path: str,
    file: str,
    *,
    config: str | None = None,
    split: str = "train",
    columns: Sequence[str] = (),
    hint: str = "",
) -> Dataset:
    """The rows of a local JSON file, or of one split of a hub dataset.

    Args:
        name_or_path: a folder, or a hub id.
        file: in a folder, the file to read, relative to it and without its ending, which is `.json` or `.jsonl`: JSON
            lines, or one JSON list of objects.
        config: on the hub, the configuration ("subset"); None for the only one.
        split: on the hub, the split.
        columns: columns that must be there.
        hint: what else the caller could pass, for the error.

    Raises:
        FileNotFoundError: the folder has no such file, or there is no such folder and no such hub dataset.
        ValueError: the hub dataset has no such configuration or split, the file cannot be read, the rows lack a column, or
            there are none.
    """
    from datasets import load_dataset

    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        wanted = folder / file
        path = next((path for path in _with_endings(wanted) if path.is_file()), None)
        if path is None:
            found = ", ".join(sorted({p.stem for p in _with_endings(wanted.with_name("*"))})) or "none"
            raise FileNotFoundError(
                f"No split {wanted.name!r} in {wanted.parent} (looked for {file}.json and .jsonl). "
                f"Splits found: {found}."
            )
        rows, source = read_file(path), str(path)
    else:
        source = repr(name_or_path) if config is None else f"{name_or_path!r}, configuration {config!r},"
        try:
            rows = load_dataset(name_or_path, config, split=split)
        except (ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"{name_or_path!r} is neither a folder nor a dataset that the hub gives access to ({error}). "
                f"Without a network, pass a folder with the file {file}.json{hint}."
            ) from error
    _check_columns(rows, columns, source)
    return rows


def _with_endings(file: Path) -> list[Path]:
    """The files that `file` may stand for; `file` may be a pattern."""
    return [path for ending in (".json", ".jsonl") for path in file.parent.glob(f"{file.name}{ending}")]


def _check_columns(rows: Dataset, columns: Sequence[str], source: str) -> None:
    """Raise a ValueError that names `source` if it has no rows or lacks one of `columns`."""
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(f"{source} has no column {missing[0]!r}. Columns found: {', '.join(rows.column_names)}.")
    if columns and len(rows) == 0:
        raise ValueError(f"{source} has no rows.")


def first_rows(rows: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows, or all of them for None.

    Raises:
        ValueError: `limit` is no whole number, or below 1.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be at least 1, a whole number, or None for all rows; got {limit!r}.")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))
