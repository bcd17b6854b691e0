"""Rows of known sets, from a local folder or from the hub, with errors that say which file or column is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wagle_trainer.data.reading.files import READERS, data_files, load_from_hub, read_file

if TYPE_CHECKING:
    from datasets import Dataset


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
        file: in a folder, the file to read, relative to it and without its ending (one of `READERS`); also found as the
            hub stores it: `<file>-00000-of-00001.parquet`, or a folder `<file>` with a file
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
    from datasets import concatenate_datasets

    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        found = next((paths for name in (file, *also) if (paths := _files_of(folder / name, split))), None)
        if found is None:
            wanted = folder / file
            parent = wanted.parent
            folders = [child.name for child in parent.glob("*") if child.is_dir() and data_files(child)]
            there = sorted({*data_files(parent), *folders})
            raise FileNotFoundError(
                f"No split {wanted.name!r} in {parent} (looked for {file}{', '.join(READERS)}"
                f"{''.join(f', or {name} in the same way' for name in also)}). "
                f"Splits found: {', '.join(there) or 'none'}."
            )
        parts = [read_file(path) for path in found]
        rows, source = concatenate_datasets(parts) if len(parts) > 1 else parts[0], str(found[0])
    else:
        source = repr(name_or_path) if config is None else f"{name_or_path!r}, configuration {config!r},"
        others = "".join(f" or {name}.json" for name in also if name not in (None, file))
        try:
            rows = load_from_hub(name_or_path, config, split)
        except (ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"{name_or_path!r} is neither a folder nor a dataset that the hub gives access to ({error}). "
                f"Without a network, or without access to it, pass a folder with the file {file}.json{others}{hint}."
            ) from error
    _check_columns(rows, columns, source)
    return rows


def _files_of(file: Path, split: str) -> list[Path]:
    """The file or files that `file` stands for: with an ending, or in the parts that the hub stores it in."""
    return data_files(file.parent).get(file.name) or data_files(file).get(split) or []


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
