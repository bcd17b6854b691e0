"""A table of rows from a file, a folder or the hub, in memory: no text that must be forgotten stays in a cache."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.reading.decoding import decode, no_text_but, read_bytes
from wagle_trainer.data.reading.parsing import as_columns, parse_csv, parse_json, parse_passages

if TYPE_CHECKING:
    from datasets import Dataset

# ending -> what is in the file
READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
}
COMPRESSED = (".gz", ".bz2", ".xz")
_SHARD = re.compile(r"(.*?)-\d+-of-\d+")
_SAVED = "dataset_info.json"  # in the folder of `Dataset.save_to_disk`
_SAVED_SPLITS = "dataset_dict.json"  # in that of `DatasetDict.save_to_disk`


def kind_of(path: Path) -> str | None:
    """What the ending says is in a file, one of `READERS`'; upper and lower case are the same."""
    name = path.name.lower()
    ending = Path(name.removesuffix(next((end for end in COMPRESSED if name.endswith(end)), "")) or name).suffix
    return READERS.get(ending)


def read_file(
    path: Path, *, encoding: str | None = None, split: str | None = None, notes: list[str] | None = None
) -> Dataset:
    """The rows of a file in memory.

    Args:
        path: with one of the endings of `READERS`; `.gz`, `.bz2` or `.xz` may follow.
        encoding: of a text file; None for UTF-8.
        split: the list that is read of a JSON file with several.
        notes: what a reader of the rows should know is added here.

    Raises:
        ValueError: it is empty, of another kind, or not what its ending says; the message names it.
    """
    kind = kind_of(path)
    if kind is None:
        known = f"known are {', '.join(READERS)}, also compressed ({COMPRESSED[0]})."
        with path.open("rb") as file:
            what = no_text_but(file.read(64))
        raise ValueError(f"{path} is of no known kind; {known}" + (f" It is {what}." if what else ""))
    if split is not None and kind != "json":
        raise ValueError(f"{path} is one table and has no split {split!r}: name the file alone.")
    notes = [] if notes is None else notes
    try:
        rows = _read_parquet(path) if kind == "parquet" else _read_text(path, kind, encoding, split, notes)
    except ValueError as error:  # of pyarrow, too
        ending = "".join(path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else path.suffixes[-1:])
        raise ValueError(f"{path} could not be read as {ending[1:]}: {error}") from error
    if len(rows) == 0:
        raise ValueError(f"{path} has no rows.")
    return rows


def _read_parquet(path: Path) -> Dataset:
    import pyarrow.parquet
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(pyarrow.parquet.read_table(path)))


def _read_text(path: Path, kind: str, encoding: str | None, split: str | None, notes: list[str]) -> Dataset:
    from datasets import Dataset

    text = decode(read_bytes(path), encoding, notes)
    if kind == "json":
        rows = parse_json(text, split, notes)
    elif kind == "txt":
        rows = parse_passages(text)
        lines = len(text.strip().splitlines())
        if len(rows) == 1 and lines > 1:
            notes.append(f"all {lines} lines are one passage: an empty line would end it")
    else:
        rows = parse_csv(text, "\t" if kind == "tsv" else None, notes)
    # Json stands where a column holds values of several types, such as messages with and without tool calls.
    return Dataset.from_dict(as_columns(rows), on_mixed_types="use_json")


def read_folder(
    folder: Path,
    config: str | None,
    split: str | None,
    *,
    encoding: str | None = None,
    notes: list[str] | None = None,
) -> Dataset:
    """The rows of one split in a folder: of `save_to_disk`, of data files, or as the hub stores it.

    Args:
        folder: with the files `<split>.<ending>` or `<split>-00000-of-00001.<ending>`, itself or in a folder `data`.
        config: the folder within it that has them.
        split: which; None for the only one, or else "train".
        encoding: of text files.
        notes: as for `read_file`.

    Raises:
        FileNotFoundError: there is no such split, or no data.
        ValueError: there are several splits, none is "train", and none was named.
    """
    from datasets import concatenate_datasets

    for place in (folder if config is None else folder / config, folder / "data" / (config or "")):
        if (place / _SAVED_SPLITS).is_file() or (place / _SAVED).is_file():
            return _read_saved(place, split)
        found = data_files(place)
        if found:
            break
    else:
        there = sorted(child.name for child in folder.iterdir() if child.is_dir() and data_files(child))
        way = f" Its folders {', '.join(there)} have some: write {folder}:{there[0]}." if there else ""
        raise FileNotFoundError(f"{place} has no data files ({', '.join(READERS)}).{way}")
    chosen = choose_split(found, split, str(folder))
    parts = [read_file(path, encoding=encoding, notes=notes) for path in found[chosen]]
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def data_files(folder: Path) -> dict[str, list[Path]]:
    """split -> its files, in order; empty if there are none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.is_file() and kind_of(path) is not None and not path.name.startswith("."):
            stem = path.name.split(".", 1)[0]
            shard = _SHARD.fullmatch(stem)
            found.setdefault(shard[1] if shard else stem, []).append(path)
    return found


def choose_split(splits: Sequence[str] | dict[str, Any], wanted: str | None, source: str) -> str:
    """The wanted one of several splits; the only one, or else "train", for None.

    Raises:
        FileNotFoundError: there is no such split.
        ValueError: none was named, there are several, and none is "train".
    """
    names = list(splits)
    if wanted is not None and wanted not in names:
        raise FileNotFoundError(f"{source} has no split {wanted!r}. It has {', '.join(names)}.")
    if wanted is None and len(names) > 1 and "train" not in names:
        raise ValueError(
            f"{source} has the splits {', '.join(names)}: name one, {source}::{names[0]} (Python: split={names[0]!r})."
        )
    return wanted or ("train" if "train" in names else names[0])


def _read_saved(folder: Path, split: str | None) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(folder), keep_in_memory=True)
    return saved[choose_split(saved, split, str(folder))] if isinstance(saved, DatasetDict) else saved


def load_from_hub(name: str, config: str | None, split: str) -> Dataset:
    """The rows of one split of a hub dataset, in memory; the prepared copy that `datasets` makes is deleted.

    Raises:
        ConnectionError, FileNotFoundError: as `datasets.load_dataset`.
        ValueError: there is no such configuration or split.
    """
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        try:
            return load_dataset(name, config, split=split, cache_dir=cache, keep_in_memory=True)
        except (ConnectionError, FileNotFoundError):
            # Without a network, what an earlier program prepared in the user's cache is all there is.
            return load_dataset(name, config, split=split, keep_in_memory=True)
