"""Means, intervals and tests over seeds, and the plain sentence that they support."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from wagle_trainer.evaluation.suites import Better

LEVEL = 0.95  # of all intervals; tests are at 1 - LEVEL


class Interval(NamedTuple):
    """A mean and its 95 % interval; `low` and `high` are None where there are too few values for one."""

    mean: float
    low: float | None = None
    high: float | None = None

    def within(self, lowest: float = -math.inf, highest: float = math.inf) -> Interval:
        """The interval without what lies outside the metric's range.

        Args:
            lowest: bound of the metric; None for none.
            highest: bound of the metric; None for none.
        """
        if self.low is None or self.high is None:
            return self
        return Interval(self.mean, max(self.low, min(lowest, self.mean)), min(self.high, max(highest, self.mean)))


def mean(values: Sequence[float]) -> float:
    """The mean.

    Raises:
        ValueError: no values, or one is not finite.
    """
    if not len(values):
        raise ValueError("There are no values to take a mean of.")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"Value {index} of {len(values)} is {value}, not a finite number.")
    return math.fsum(values) / len(values)


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and Student's t interval at 95 %, for values of independent runs; no interval for a single one.

    Args:
        values: one for each run.

    Raises:
        ValueError: as `mean`.
    """
    middle = mean(values)
    if len(values) < 2:
        return Interval(middle)
    error = float(stats.sem(values))
    low, high = (middle, middle) if error == 0 else stats.t.interval(LEVEL, len(values) - 1, middle, error)
    return Interval(middle, float(low), float(high))


def paired_p_value(values: Sequence[float], reference: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t-test over seeds; 1.0 if no pair differs.

    None if all pairs differ by the same amount: then the seed changes nothing, and its values are no independent runs.

    Args:
        values, reference: one number for each seed, in the same order; at least two.

    Raises:
        ValueError: fewer than two pairs, or unequal lists.
    """
    if len(values) != len(reference) or len(values) < 2:
        raise ValueError(
            f"A paired test needs two or more pairs; there are {len(values)} and {len(reference)} values."
        )
    differences = np.subtract(values, reference)
    spread = np.ptp(differences)
    if spread <= 1e-12 * np.abs([values, reference]).max():  # the variance is rounding alone
        return None if np.abs(differences).max() > spread else 1.0
    return float(stats.ttest_rel(values, reference).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (1979): the family-wise error stays at the level.

    The i-th smallest of m is multiplied by m - i + 1; none is below a smaller one's; none exceeds 1.

    Args:
        p_values: of all tests together.
    """
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


@dataclass(frozen=True)
class Comparison:
    """What the seeds say of one number of two variants.

    Attributes:
        label, reference: the two variants.
        family: what the references of this and the comparisons corrected together with it are.
        metric: name of the number.
        better: whether "lower" or "higher" values are.
        difference: mean over seeds of label - reference, with its uncorrected 95 % interval.
        seeds: number of pairs.
        uncorrected_p_value: of the paired t-test; None with fewer than two seeds, or where the seed changes nothing.
        corrected_p_value: by Holm, over all `comparisons` that are shown together.
        comparisons: the number of those that were tested.
        missed: those of the two variants that did not reach the forget goal: then neither is better.
    """

    label: str
    reference: str
    family: str
    metric: str
    better: Better
    difference: Interval
    seeds: int
    uncorrected_p_value: float | None
    corrected_p_value: float | None
    comparisons: int
    missed: tuple[str, ...] = ()

    @property
    def verdict(self) -> Literal["better", "worse", "no difference found", "not tested", "goal not reached"]:
        """At the 5 % level, after the correction."""
        if self.missed:
            return "goal not reached"
        if self.corrected_p_value is None:
            return "not tested"
        if self.corrected_p_value >= 1 - LEVEL:
            return "no difference found"
        return "better" if (self.difference.mean > 0) == (self.better == "higher") else "worse"

    def sentence(self, name: str | None = None) -> str:
        """The plain sentence that the data support; `name` is what to call the metric.

        Args:
            name: what to call the metric.
        """
        on = f"on {name or self.metric}"
        size = f"difference {self.difference.mean:+.3f}"
        if self.difference.low is not None:
            size += f", 95 % interval {self.difference.low:+.3f} to {self.difference.high:+.3f}"
        seeds = f"{self.seeds} seed" + "s" * (self.seeds != 1)
        p = "" if self.corrected_p_value is None else f"p {as_p_value(self.corrected_p_value)}, {seeds}"
        if self.verdict == "goal not reached":
            who = " and ".join(self.missed)
            return f"{self.label} against {self.reference} {on}: not compared, {who} did not reach the forget goal ({size})."
        if self.verdict == "not tested":
            why = seeds if self.seeds == 1 else f"all {seeds} differ by the same"
            return f"{self.label} against {self.reference} {on}: not tested, {why} ({size})."
        if self.verdict == "no difference found":
            return f"{self.label} against {self.reference} {on}: no difference found ({p}; {size})."
        return f"{self.label} is {self.verdict} than {self.reference} {on} ({size}; {p})."

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {**vars(self), "difference": self.difference._asdict(), "verdict": self.verdict}


def as_p_value(value: float) -> str:
    """= 0.012, or < 0.0001."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def compare(
    values: Mapping[str, Sequence[float]],
    pairs: Sequence[tuple[str, str]],
    *,
    family: str,
    metric: str,
    better: Better,
) -> list[Comparison]:
    """Compare variants with their references over seeds, corrected by Holm for the number of `pairs`.

    Args:
        values: label -> one number for each seed, in the same order of seeds.
        pairs: (label, label of its reference).
        family: what the references are, such as "a random mask of the same density".
        metric: what the numbers are called.
        better: which values are.

    Raises:
        ValueError: a label without values, different numbers of seeds, a value that is not finite.
    """
    found = []
    for label, reference in pairs:
        for name in (label, reference):
            if name not in values:
                raise ValueError(f"No results are labelled {name!r}; there are {', '.join(map(repr, values))}.")
        one, other = values[label], values[reference]
        if len(one) != len(other):
            raise ValueError(
                f"{label!r} has {len(one)} seeds and {reference!r} has {len(other)}: a paired test needs the same."
            )
        difference = t_interval([a - b for a, b in zip(one, other, strict=True)])
        p_value = paired_p_value(one, other) if len(one) > 1 else None
        found.append(
            Comparison(label, reference, family, metric, better, difference, len(one), p_value, p_value, len(pairs))
        )
    return corrected_together(found)


def corrected_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons whose p-values are corrected by Holm for the number of all of them that were tested."""
    tested = [comparison for comparison in comparisons if comparison.uncorrected_p_value is not None]
    corrected = iter(holm([comparison.uncorrected_p_value for comparison in tested]))  # type: ignore[misc]
    return [
        replace(
            comparison,
            comparisons=len(tested),
            corrected_p_value=None if comparison.uncorrected_p_value is None else next(corrected),
        )
        for comparison in comparisons
    ]
