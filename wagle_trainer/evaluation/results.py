"""Results of an evaluation: on disk as JSON, on screen as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from wagle_trainer.evaluation.suites import get_suite, readings
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.cards import evaluation_section, is_repo_id, make_card
from wagle_trainer.utils.folder_lock import folder_lock
from wagle_trainer.utils.hub import find_file, upload
from wagle_trainer.utils.secrets import redacted
from wagle_trainer.utils.table_formats import csv_table, latex_table, markdown_table
from wagle_trainer.utils.text_table import text_table

RESULTS_NAME = "results.json"
_DEEPEST = 100  # containers within each other; results have about ten
_LARGEST = 10**300  # whole numbers that float takes


def save_results(results: Any, path: str | PathLike[str]) -> None:
    """Write results (of evaluations, attacks, or a history) as JSON, completely or not at all; missing folders are made.

    Tokens, passwords and credentials in their settings are left out.

    Args:
        results: what JSON can hold.
        path: of the file.

    Raises:
        ValueError: a number is infinite or not a number; an existing file stays as it was.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), as_json(results))


def as_json(results: Any) -> bytes:
    """Results as `save_results` writes them."""
    content = json.dumps(without_secrets(results), indent=1, ensure_ascii=False, allow_nan=False)
    return f"{content}\n".encode()


def without_secrets(results: Any) -> Any:
    """Results whose settings hold no tokens, passwords or credentials; examples stay as they are."""
    if isinstance(results, Mapping):
        return {
            key: redacted(value) if key == "settings" else value if key == "per_example" else without_secrets(value)
            for key, value in results.items()
        }
    return [without_secrets(part) for part in results] if isinstance(results, list | tuple) else results


def without_texts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results of one evaluation without texts of the sets: per example only numbers are kept, and groups by number."""
    sets = results.get("per_example")
    if not isinstance(sets, Mapping):
        return dict(results)
    return {**results, "per_example": {name: _numbers_of(columns) for name, columns in sets.items()}}


def _numbers_of(columns: Any) -> Any:
    if not isinstance(columns, Mapping):
        return None if _holds_text(columns) else columns
    kept = {name: values for name, values in columns.items() if not _holds_text(values)}
    if "group" in columns and "group" not in kept:
        known = {text: f"group {number}" for number, text in enumerate(dict.fromkeys(columns["group"]), start=1)}
        kept["group"] = [known[text] for text in columns["group"]]
    return kept


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    return isinstance(value, str) or (isinstance(value, list | tuple) and any(map(_holds_text, value)))


def add_results(label: str, results: Any, path: str | PathLike[str]) -> dict[str, Any]:
    """Add results to a file of label -> results, and return all of them; several processes may do so at once.

    Args:
        label: of these results; earlier ones of this label are replaced.
        results: what an evaluation or `run_attacks` returned.
        path: of the file; made if missing.

    Raises:
        ValueError: the file does not hold results by label; it stays as it was.
    """
    with folder_lock(Path(path).absolute().parent):
        known = load_results(path) if Path(path).exists() else {}
        if not isinstance(known, Mapping):
            raise ValueError(f"{path} does not hold results by label: name another file.")
        found = {**known, label: results}
        save_results(found, path)
    return found


def load_results(path: str | PathLike[str]) -> Any:
    """Read what `save_results` wrote, or what `push_results` uploaded.

    Args:
        path: a file; or a repository on the Hub, `owner/name`, that holds `results.json`.

    Raises:
        FileNotFoundError: there is no such file or repository.
        ValueError: it is not JSON; the message names it.
    """
    if _is_on_the_hub(path):
        path = find_file(path, RESULTS_NAME, None, "results")
    too_deep = f"{path} is nested too deeply to be what save_results writes."
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(too_deep) from error
    except ValueError as error:
        raise ValueError(f"{path} is not the JSON that save_results writes ({error}).") from error
    if _depth(found) > _DEEPEST:
        raise ValueError(too_deep)
    return found


def load_results_by_label(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file of label -> results of one evaluation, or a list of them, and check what tables and reports rely on.

    Args:
        path: a file, or a repository on the Hub, as for `load_results`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold results by label; names the file and the first place that is wrong.
    """
    found = load_results(path)
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} does not hold results by label: name another file.")
    for label, results in found.items():
        for result in results if isinstance(results, list) else [results]:
            if not isinstance(result, Mapping):
                raise ValueError(
                    f"{path} does not hold results by label: {label!r} is not what an evaluation returns. If the file holds "
                    'one evaluation without a label, write {label: results}, such as {"after": ...}.'
                )
            _check_form(result, f"{path}: of the results of {label!r},")
    return dict(found)


def _check_form(result: Mapping[str, Any], where: str) -> None:
    settings, sets = result.get("settings", {}), result.get("per_example", {})
    mappings = {"settings": settings, "per_example": sets}
    if isinstance(settings, Mapping):
        mappings |= {f"settings.{name}": settings.get(name, {}) for name in ("missing", "warnings", "examples")}
    if isinstance(sets, Mapping):
        mappings |= {f"per_example.{name}": columns for name, columns in sets.items()}
    if wrong := [name for name, value in mappings.items() if not isinstance(value, Mapping)]:
        raise ValueError(f"{where} {wrong[0]} is no set of names and values: the file was altered.")
    for name, columns in sets.items():
        if odd := [column for column, values in columns.items() if not _is_column(values)]:
            raise ValueError(
                f"{where} per_example.{name}.{odd[0]} is no list of numbers or texts: the file was altered."
            )
        if len({len(values) for values in columns.values()}) > 1:
            raise ValueError(f"{where} the lists of per_example.{name} differ in length: the file was altered.")
    if huge := [name for name, value in result.items() if isinstance(value, int) and abs(value) > _LARGEST]:
        raise ValueError(f"{where} {huge[0]} is too large to be a metric: the file was altered.")


def _is_column(values: Any) -> bool:
    """Whether these are numbers, texts, or lists of them, one kind in a column; None for what is not known."""
    if not isinstance(values, list):
        return False
    kinds = {_kind(value) for value in values if value is not None}
    return len(kinds) <= 1 and "" not in kinds


def _kind(value: Any) -> str:
    if isinstance(value, int | float):
        return "number" if abs(value) <= _LARGEST else ""
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else ""


def _depth(value: Any) -> int:
    """How many containers lie within each other; without recursion, which would end as the parser's does."""
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


def _is_on_the_hub(path: str | PathLike[str]) -> bool:
    text = str(path)
    return not Path(path).exists() and Path(path).suffix == "" and text.count("/") == 1 and is_repo_id(text)


def push_results(
    results: Mapping[str, Any],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload results",
) -> str:
    """Upload results to a repository on the Hub, for `load_results(repo_id)`; texts of the sets stay here.

    Results of a reference model are worth sharing: whoever evaluates a model on the same questions needs them for the
    numbers that compare with a model that never saw the forget set.

    Args:
        results: label -> what an evaluation returned.
        repo_id: of the repository, made if need be.
        private: whether a new repository is private; None for the account's default.
        token: of the Hub; None for the saved one.
        commit_message: of the upload.

    Returns:
        The commit's address.

    Raises:
        ValueError: these are no results by label.
    """
    if not isinstance(results, Mapping) or not all(isinstance(found, Mapping) for found in results.values()):
        raise ValueError("push_results takes label -> what an evaluation returned, such as {'retrained': results}.")
    shared = {label: without_texts(found) for label, found in results.items()}

    def write(folder: Path, full_id: str) -> None:
        save_results(shared, folder / RESULTS_NAME)
        text = f'# Results\n\nResults of evaluations with wagle-trainer: `load_results("{full_id}")`.\n'
        numbers = {label: metrics_of(found) for label, found in shared.items()}
        make_card(text + evaluation_section(numbers), None, "wagle-trainer").save(folder / "README.md")

    return upload(write, repo_id, private=private, token=token, commit_message=commit_message)


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one evaluation by name: the numbers at the top level of what it returned."""
    return {
        name: float(value)
        for name, value in results.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def results_table(
    results: Mapping[str, Mapping[str, Any]],
    headline: Mapping[str, tuple[str, str]] | None = None,
    format: Literal["text", "csv", "markdown", "latex"] = "text",
) -> str:
    """The main numbers of several evaluations as a table.

    Args:
        results: label of each row ("before", "after (wagle)", "retrained") -> what an evaluation returned. Where a
            number is absent, such as forget quality without a reference, the table has "-" (CSV: nothing); if it is in
            all rows, a sentence below text says why, and what to do.
        headline: metric -> the two lines of its column's head: a suite's `headline`; TOFU's if None.
        format: aligned text; or CSV, with every digit and the metrics' names; Markdown; LaTeX for booktabs.

    Raises:
        ValueError: an unknown format.
    """
    columns = get_suite("tofu").headline if headline is None else headline
    if format == "csv":
        values = [[label, *(numbers.get(name) for name in columns)] for label, numbers in results.items()]
        return csv_table(
            [["model", *columns], *([("" if value is None else str(value)) for value in row] for row in values)]
        )
    rows = [[label, *(_cell(name, numbers) for name in columns)] for label, numbers in results.items()]
    if format in ("markdown", "latex"):
        head = ["", *(" ".join(lines) for lines in columns.values())]
        return (markdown_table if format == "markdown" else latex_table)([head, *rows])
    if format != "text":
        raise ValueError(f"Unknown format {format!r}: use 'text', 'csv', 'markdown' or 'latex'.")
    head_lines = [["", *(lines[line] for lines in columns.values())] for line in (0, 1)]
    return "\n".join([text_table([*head_lines, *rows], header=2), *_notes(results, columns)])


def _notes(results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """Why a column has no number at all, and which numbers may mislead."""
    notes = []
    for name, head in columns.items():
        reasons = [numbers.get("settings", {}).get("missing", {}).get(name) for numbers in results.values()]
        if reasons and all(reasons):
            notes.append(f"{' '.join(head)} {reasons[0]}.")
        warnings = {
            label: numbers.get("settings", {}).get("warnings", {}).get(name) for label, numbers in results.items()
        }
        for text in dict.fromkeys(filter(None, warnings.values())):
            labels = ", ".join(label for label, warning in warnings.items() if warning == text)
            notes.append(f"{' '.join(head)} of {labels} {text}.")
    return ["", *notes] if notes else []


def _cell(name: str, numbers: Mapping[str, Any]) -> str:
    value = numbers.get(name)
    if not isinstance(value, int | float):
        return "-"
    metric = next(readings(name, numbers), None)
    if metric is None or not metric.p_value:
        return f"{value:.3f}"
    rows = numbers.get("settings", {}).get("examples", {}).get(metric.set)
    return f"{value:#.2g}" + (f" (n={rows})" if rows is not None else "")
