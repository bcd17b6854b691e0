"""What a report is made of: checked before anything is written, and read in one way afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from wagle_trainer.evaluation.results import metrics_of
from wagle_trainer.evaluation.suites import Better

Result = Mapping[str, Any]
Results = Mapping[str, "Result | Sequence[Result]"]


class Metrics(Protocol):
    """How to read the numbers of a suite; a `Suite` is one. The first of the forget and of the utility metrics is the
    one that is plotted and tested."""

    @property
    def headline(self) -> Mapping[str, tuple[str, str]]:
        """Metric -> the two lines of its column's head, in the order of the columns."""

    @property
    def forget_metrics(self) -> Mapping[str, Better]:
        """Metric -> which values say that more was forgotten."""

    @property
    def utility_metrics(self) -> Mapping[str, Better]:
        """Metric -> which values say that more was kept."""


def check_finite(value: Any, where: str) -> None:
    """Raise unless all numbers in nested dicts and lists are finite.

    Raises:
        ValueError: names the place of the first one that is not.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: a report holds finite numbers only. Nothing was written.")
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_finite(part, f"{where}[{key!r}]")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, part in enumerate(value):
            check_finite(part, f"{where}[{index}]")


def check_types(run: Result, label: str) -> None:
    """Raise unless the parts of one evaluation's results are of the types that an evaluation writes.

    Raises:
        ValueError: names the part that is not.
    """

    def check(value: Any, kind: type | tuple[type, ...], words: str, *path: str) -> None:
        if not isinstance(value, kind):
            place = "".join(f"[{part!r}]" for part in path)
            raise ValueError(
                f"The results of {label!r} have {type(value).__name__} in {place}, where {words} belongs."
            )

    settings, per_example = run.get("settings", {}), run.get("per_example", {})
    check(settings, Mapping, "a mapping of settings", "settings")
    check(settings.get("suite", ""), (str, type(None)), "the name of a suite", "settings", "suite")
    check(settings.get("examples", {}), (Mapping, type(None)), "a mapping of numbers", "settings", "examples")
    check(per_example, Mapping, "a mapping of sets", "per_example")
    for name, columns in per_example.items():
        check(columns, Mapping, "a mapping of columns", "per_example", str(name))
        for column, values in columns.items():
            check(
                values, (list, tuple), "a list with one entry for each example", "per_example", str(name), str(column)
            )


class Runs:
    """The evaluations of a report: label -> one for each seed.

    Args:
        results: label -> what an evaluation returned, or a list of these, one for each seed. A label with a single
            result may stand beside labels with several seeds: a model that all of them share.

    Raises:
        ValueError: there are no results, two labels have different seeds, or a number is not finite.
    """

    def __init__(self, results: Results):
        if not results or not isinstance(results, Mapping):
            raise ValueError("There are no results to report: pass label -> what an evaluation returned.")
        if any(isinstance(found, int | float) for found in results.values()):
            raise ValueError(
                "These are the results of one evaluation, without a label: pass {label: results}, such as {'after': ...}, "
                "beside those of the reference model."
            )
        check_finite(results, "results")
        self.by_label: dict[str, list[Result]] = {}
        for label, found in results.items():
            runs = [found] if isinstance(found, Mapping) else list(found) if isinstance(found, list | tuple) else []
            if not runs or not all(isinstance(run, Mapping) and run for run in runs):
                raise ValueError(
                    f"The results of {label!r} are empty or no results: pass what an evaluation returned, or a list of "
                    "these, one for each seed."
                )
            for run in runs:
                check_types(run, label)
            self.by_label[label] = runs
        self._check_seeds({label: found for label, found in results.items() if not isinstance(found, Mapping)})

    def _check_seeds(self, several: Mapping[str, Any]) -> None:
        seeds = {label: [run.get("settings", {}).get("seed") for run in runs] for label, runs in several.items()}
        for label, own in seeds.items():
            first = next(iter(seeds))
            if len(own) != len(seeds[first]) or (None not in own + seeds[first] and own != seeds[first]):
                raise ValueError(
                    f"{first!r} has {_seeds(seeds[first])} and {label!r} has {_seeds(own)}: variants are compared seed "
                    "by seed. Run the missing seeds, or leave the variant out."
                )

    @property
    def seeds(self) -> int:
        """The largest number of seeds of a label."""
        return max(map(len, self.by_label.values()))

    def __iter__(self) -> Any:
        return iter(self.by_label)

    def has(self, label: str, metric: str) -> bool:
        """Whether every run of a label has a number.

        Args:
            label: of the evaluations.
            metric: name of the number.
        """
        return all(metric in metrics_of(run) for run in self.by_label[label])

    def values(self, label: str, metric: str) -> list[float]:
        """One number of each seed.

        Args:
            label: of the evaluations.
            metric: name of the number.

        Raises:
            ValueError: unknown label, or the evaluation did not give that number.
        """
        if label not in self.by_label:
            raise ValueError(f"No results are labelled {label!r}; there are {', '.join(map(repr, self.by_label))}.")
        if not self.has(label, metric):
            numbers = metrics_of(self.by_label[label][0])
            raise ValueError(
                f"The results of {label!r} have no number {metric!r}; they have {', '.join(numbers) or 'none'}."
            )
        return [float(run[metric]) for run in self.by_label[label]]

    def metrics(self, headline: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """The columns that some label has numbers for.

        Args:
            headline: metric -> the two lines of its column's head.

        Raises:
            ValueError: none of them; another suite was evaluated.
        """
        found = {m: head for m, head in headline.items() if any(self.has(label, m) for label in self)}
        if not found:
            label, runs = next(iter(self.by_label.items()))
            raise ValueError(
                f"The results of {label!r} have none of the numbers {', '.join(headline)}; they have "
                f"{', '.join(metrics_of(runs[0])) or 'none'}. Pass the suite that they come from."
            )
        return found


def first_of(
    metrics: Mapping[str, Better], runs: Runs, columns: Mapping[str, Any], labels: Sequence[str]
) -> str | None:
    """The first metric that is a column of the table and that all the labels have."""
    return next((m for m in metrics if m in columns and all(runs.has(label, m) for label in labels)), None)


def _seeds(seeds: Sequence[Any]) -> str:
    return f"{len(seeds)} runs" if None in seeds else f"the seeds {', '.join(map(str, seeds))}"
