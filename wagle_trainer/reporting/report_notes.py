"""What stands beside the numbers of a report: of how many examples they are, and which of them may mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wagle_trainer.evaluation.suites import readings
from wagle_trainer.reporting.intervals import example_counts
from wagle_trainer.reporting.report_inputs import Runs
from wagle_trainer.reporting.statistics import mean


def example_counts_of(runs: Runs, label: str, metric: str) -> dict[str, dict[str, int]]:
    """The sets that a number is of -> their rows and groups, in the first run."""
    run = runs.by_label[label][0]
    found = {name: counts._asdict() for name, counts in example_counts(run, metric).items()}
    reading = next(readings(metric, run), None)
    if not found and reading is not None and reading.set is not None:
        rows = run.get("settings", {}).get("examples", {}).get(reading.set)
        found = {} if rows is None else {reading.set: {"rows": rows}}
    return found


def examples_note(counts: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]]) -> str:
    """How many rows and groups the numbers are of: "forget: 400 rows in 20 groups; ..."."""
    by_set: dict[str, dict[str, int]] = {}
    for by_metric in counts.values():
        for sets in by_metric.values():
            for name, found in sets.items():
                by_set[name] = by_set.get(name, {}) | dict(found)
    return "; ".join(
        f"{name.replace('_', ' ')}: {found['rows']} rows"
        + (f" in {found['groups']} groups" if found.get("groups", found["rows"]) < found["rows"] else "")
        for name, found in by_set.items()
    )


def warning_sentences(runs: Runs, columns: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
    """Which numbers of the table may mislead, and why."""
    found: dict[str, list[str]] = {}
    for label, several in runs.by_label.items():
        warnings = several[0].get("settings", {}).get("warnings", {})
        for metric in columns:
            if metric in warnings:
                found.setdefault(f"{named[metric]} of {{}} {warnings[metric]}.", []).append(label)
    return [*(text.replace("{}", ", ".join(labels), 1) for text, labels in found.items()), *_other_formats(runs)]


def _other_formats(runs: Runs) -> list[str]:
    """Which models were asked in another format of questions and answers than the first."""
    formats = {label: several[0].get("settings", {}).get("qa_format") for label, several in runs.by_label.items()}
    known = {label: found for label, found in formats.items() if isinstance(found, Mapping)}
    if not known:
        return []
    first, asked = next(iter(known.items()))
    sentences = []
    for label, found in known.items():
        changed = [name for name in {**asked, **found} if asked.get(name) != found.get(name)]
        if changed:
            differences = "; ".join(f"{name} {found.get(name)!r} in place of {asked.get(name)!r}" for name in changed)
            sentences.append(
                f"{label} was asked in another format of questions and answers than {first} ({differences}): their numbers "
                "cannot be compared."
            )
    return sentences


def missed_goal(
    runs: Runs, unlearned: Sequence[str], metric: str | None, better: Mapping[str, str], goal: float | None
) -> set[str]:
    """The unlearned models whose mean of the forget metric does not reach the goal."""
    if goal is None or metric is None:
        return set()
    sign = 1 if better[metric] == "lower" else -1
    return {label for label in unlearned if sign * mean(runs.values(label, metric)) > sign * goal}
