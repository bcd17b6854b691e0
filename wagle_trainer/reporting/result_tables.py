"""The table of a report as CSV, Markdown and LaTeX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.table_formats import csv_table, latex_table, markdown_table

FILES = {"csv": "table.csv", "markdown": "table.md", "latex": "table.tex"}


def write_tables(
    page: Mapping[str, Any],
    folder: str | PathLike[str],
    formats: Sequence[str] = tuple(FILES),
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Write the table of a report into a folder, a file for each format.

    CSV has every digit and a column for each end of an interval; Markdown and LaTeX (booktabs) are rounded, with the
    interval in brackets.

    Args:
        page: what `write_report` wrote into `report.json`.
        folder: where to; made if missing.
        formats: of "csv", "markdown" and "latex".
        more: further columns: head -> label -> value.

    Returns:
        The files: table.csv, table.md, table.tex.

    Raises:
        ValueError: an unknown format.
    """
    unknown = [name for name in formats if name not in FILES]
    if unknown:
        raise ValueError(f"Unknown format {', '.join(unknown)}: tables are written as {', '.join(FILES)}.")
    columns, table, more = page["columns"], page["table"], more or {}
    rounded = [["", *(" ".join(head) for head in columns.values()), *more]]
    exact = [["model", *(f"{name}{end}" for name in columns for end in ("", "_low", "_high")), *more]]
    for label, found in table.items():
        extra = [values.get(label) for values in more.values()]
        rounded.append([label, *(_rounded(found.get(name)) for name in columns), *map(_short, extra)])
        ends = [found.get(name, {}).get(end) for name in columns for end in ("mean", "low", "high")]
        exact.append([label, *map(_exact, [*ends, *extra])])
    texts = {"csv": csv_table(exact), "markdown": markdown_table(rounded), "latex": latex_table(rounded)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        written.append(Path(folder) / FILES[name])
        write_atomically(written[-1], texts[name].encode())
    return written


def _rounded(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    middle = f"{found['mean']:.3f}" if abs(found["mean"]) >= 0.0005 or not found["mean"] else f"{found['mean']:.1e}"
    return middle if found.get("low") is None else f"{middle} [{found['low']:.3f}, {found['high']:.3f}]"


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _exact(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
