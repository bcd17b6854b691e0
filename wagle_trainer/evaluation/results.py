"""Results of an evaluation: on disk as JSON, on screen as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from wagle_trainer.evaluation.suites import get_suite, readings
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.text_table import text_table


def save_results(results: Any, path: str | PathLike[str]) -> None:
    """Write results (of evaluations, attacks, or a history) as JSON, whole or not at all; missing folders are made.

    Raises:
        ValueError: a number is infinite or not a number; an existing file stays as it was.
    """
    content = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), f"{content}\n".encode())


def load_results(path: str | PathLike[str]) -> Any:
    """Read what `save_results` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not the JSON that save_results writes ({error}).") from error


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one evaluation by name: the numbers at the top level of what it returned."""
    return {
        name: float(value)
        for name, value in results.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def results_table(
    results: Mapping[str, Mapping[str, Any]], headline: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """The main numbers of several evaluations as aligned plain text.

    Args:
        results: label of each row ("before", "after (wagle)", "retrained") -> what an evaluation returned. Where a
            number is absent, such as forget quality without a reference, the table has "-"; if it is in all rows, a
            sentence below says why, and what to do.
        headline: metric -> the two lines of its column's head: a suite's `headline`; TOFU's if None.
    """
    columns = get_suite("tofu").headline if headline is None else headline
    rows = [["", *(first for first, _ in columns.values())], ["", *(second for _, second in columns.values())]]
    rows += [[label, *(_cell(name, numbers) for name in columns)] for label, numbers in results.items()]
    return "\n".join([text_table(rows, header=2), *_notes(results, columns)])


def _notes(results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """Why a column has no number at all."""
    notes = []
    for name, head in columns.items():
        reasons = [numbers.get("settings", {}).get("missing", {}).get(name) for numbers in results.values()]
        if reasons and all(reasons):
            notes.append(f"{' '.join(head)} {reasons[0]}.")
    return ["", *notes] if notes else []


def _cell(name: str, numbers: Mapping[str, Any]) -> str:
    value = numbers.get(name)
    if value is None:
        return "-"
    metric = next(readings(name, numbers), None)
    return f"{value:#.2g}" if metric is not None and metric.p_value else f"{value:.3f}"
