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
    also: Sequence[str] = (),
    hint: str = "",
) -> Dataset:
    """The rows of a local file, or of one split of a hub dataset.

    Args:
        name_or_path: a folder, or a hub id.
        file: in a folder, the file to read, relative to it and without its ending (`.json`, `.jsonl`, `.csv`, `.parquet`);
            also found as the hub stores it: `<file>-00000-of-00001.parquet`, or a folder `<file>` with a file
            `<split>-00000-of-00001.parquet`.
        config: on the hub, the configuration ("subset"); None for the only one.
        split: on the hub, the split.
        columns: columns that must be there.
        also: other names that the file may have.
        hint: what else the caller could pass, for the error.

    Raises:
        FileNotFoundError: the folder has no such file, or there is no such folder and no such hub dataset.
        ValueError: the hub dataset has no such configuration or split, the file cannot be read, the rows lack a column, or
            there are none.
    """
    from datasets import concatenate_datasets, load_dataset

    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        found = next((paths for name in (file, *also) if (paths := _files_of(folder / name, split))), None)
        if found is None:
            wanted = folder / file
            there = sorted({_name_of(path) for path in wanted.parent.glob("*") if _is_data(path)})
            raise FileNotFoundError(
                f"No split {wanted.name!r} in {wanted.parent} (looked for {file}{', '.join(READERS)}"
                f"{''.join(f', or {name} in the same way' for name in also)}). "
                f"Splits found: {', '.join(there) or 'none'}."
            )
        parts = [read_file(path) for path in found]
        rows, source = concatenate_datasets(parts) if len(parts) > 1 else parts[0], str(found[0])
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


def _files_of(file: Path, split: str) -> list[Path]:
    """The file or files that `file` stands for: with an ending, or in the parts that the hub stores it in."""
    whole = [path for ending in READERS if (path := file.parent / f"{file.name}{ending}").is_file()]
    in_folder = [path for ending in READERS if (path := file / f"{split}{ending}").is_file()]
    shards = [sorted(file.parent.glob(f"{file.name}-*-of-*.parquet")), sorted(file.glob(f"{split}-*-of-*.parquet"))]
    return next((found for found in (whole[:1], shards[0], in_folder[:1], shards[1]) if found), [])


def _is_data(path: Path) -> bool:
    return path.suffix in READERS or (path.is_dir() and any(child.suffix in READERS for child in path.iterdir()))


def _name_of(path: Path) -> str:
    return path.name if path.is_dir() else path.stem.split("-00", 1)[0]


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
