"""One number of a suite, stated once: how the examples make it, and how to read it.

A statistic is a function of weights on the examples. With equal weights it is the metric; with the weights of a
resampling it gives an interval, without a second definition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wagle_trainer.evaluation.metrics.membership import roc_auc
from wagle_trainer.evaluation.metrics.metric_checks import Floats

Better = Literal["lower", "higher"]
PerExample = Mapping[str, Mapping[str, Sequence[Any]]]  # set -> column -> one entry for each example
Transform = Callable[[Any, Any], Any]
# Weights of the examples by set, each (..., examples) -> the metric (...).
OfWeights = Callable[[Mapping[str, Floats]], Floats]


@dataclass(frozen=True)
class Bound:
    """A statistic on the examples of one result.

    Attributes:
        sizes: set -> number of examples.
        of_weights: the metric as a function of their weights.
    """

    sizes: Mapping[str, int]
    of_weights: OfWeights

    def value(self) -> float:
        """The metric: all examples count alike."""
        return float(self.of_weights({name: np.ones(size) for name, size in self.sizes.items()}))


class Statistic(ABC):
    """How a metric is made of per-example columns."""

    @abstractmethod
    def bind(self, examples: PerExample, settings: Mapping[str, Any]) -> Bound | None:
        """The statistic on these examples; None where a column or a setting is missing.

        Args:
            examples: `per_example` of a result.
            settings: `settings` of the same.
        """

    @abstractmethod
    def places(self) -> list[tuple[str, str]]:
        """The columns that it is of, as far as they are known without a result: (set, column)."""

    def of(self, examples: PerExample, settings: Mapping[str, Any]) -> float | None:
        """The metric of all examples; None where a column or a setting is missing."""
        bound = self.bind(examples, settings)
        return None if bound is None else bound.value()


@dataclass(frozen=True)
class Mean(Statistic):
    """The mean over a set's examples of one function of one column.

    Attributes:
        set: name of the set.
        column: name of its column.
        transform: takes the column and the value of `setting`, and gives one number for each example; None for the
            column as it is.
        setting: of the result, such as a threshold.
        after: a function of the mean.
    """

    set: str
    column: str
    transform: Transform | None = None
    setting: str | None = None
    after: Callable[[Floats], Floats] | None = None

    def bind(self, examples: PerExample, settings: Mapping[str, Any]) -> Bound | None:
        """See `Statistic`."""
        column = examples.get(self.set, {}).get(self.column)
        if column is None or (self.setting is not None and self.setting not in settings):
            return None
        changed = column if self.transform is None else self.transform(column, settings.get(self.setting or ""))
        values = np.asarray(changed, dtype=np.float64)

        def of_weights(weights: Mapping[str, Floats]) -> Floats:
            mean = weights[self.set] @ values / weights[self.set].sum(-1)
            return mean if self.after is None else self.after(mean)

        return Bound({self.set: len(values)}, of_weights)

    def places(self) -> list[tuple[str, str]]:
        """See `Statistic`."""
        return [(self.set, self.column)]


@dataclass(frozen=True)
class HarmonicMean(Statistic):
    """The harmonic mean of statistics; 0 as soon as one of them is 0."""

    parts: tuple[Statistic, ...]

    def bind(self, examples: PerExample, settings: Mapping[str, Any]) -> Bound | None:
        """See `Statistic`."""
        return _combined([part.bind(examples, settings) for part in self.parts], _harmonic_mean)

    def places(self) -> list[tuple[str, str]]:
        """See `Statistic`."""
        return [place for part in self.parts for place in part.places()]


def _harmonic_mean(parts: list[Floats]) -> Floats:
    with np.errstate(divide="ignore"):
        return len(parts) / np.sum([1 / part for part in parts], axis=0)


@dataclass(frozen=True)
class WeightedSum(Statistic):
    """The sum of statistics times weights."""

    parts: tuple[tuple[float, Statistic], ...]

    def bind(self, examples: PerExample, settings: Mapping[str, Any]) -> Bound | None:
        """See `Statistic`."""
        bound = [part.bind(examples, settings) for _, part in self.parts]
        weights = [weight for weight, _ in self.parts]
        return _combined(bound, lambda parts: sum(w * part for w, part in zip(weights, parts, strict=True)))

    def places(self) -> list[tuple[str, str]]:
        """See `Statistic`."""
        return [place for _, part in self.parts for place in part.places()]


def _combined(parts: Sequence[Bound | None], function: Callable[[list[Floats]], Any]) -> Bound | None:
    found = [part for part in parts if part is not None]
    if not found or len(found) < len(parts):
        return None
    sizes = {name: size for part in found for name, size in part.sizes.items()}
    return Bound(sizes, lambda weights: function([part.of_weights(weights) for part in found]))


@dataclass(frozen=True)
class Auc(Statistic):
    """The area under the ROC curve of a membership attack, whose scores are one column of two sets.

    Attributes:
        column: name of the column; the lower, the likelier a member.
        members: set of those whose membership is in question.
        others: set of those that the model was not trained on; None for what the setting `non_members` names.
    """

    column: str
    members: str = "forget"
    others: str | None = None

    def bind(self, examples: PerExample, settings: Mapping[str, Any]) -> Bound | None:
        """See `Statistic`."""
        others = str(settings.get("non_members")) if self.others is None else self.others
        inside, outside = (examples.get(name, {}).get(self.column) for name in (self.members, others))
        if inside is None or outside is None:
            return None
        one, other = np.asarray(inside, float), np.asarray(outside, float)
        wins: NDArray[np.float64] | None = None

        def of_weights(weights: Mapping[str, Floats]) -> Floats:
            nonlocal wins
            mine, theirs = weights[self.members], weights[others]
            if mine.ndim == theirs.ndim == 1 and (mine == 1).all() and (theirs == 1).all():
                return np.asarray(roc_auc(one, other))  # by ranks: no table of pairs
            if wins is None:
                wins = (one[:, None] < other) + 0.5 * (one[:, None] == other)
            return ((mine @ wins) * theirs).sum(-1) / (mine.sum(-1) * theirs.sum(-1))

        return Bound({self.members: len(one), others: len(other)}, of_weights)

    def places(self) -> list[tuple[str, str]]:
        """See `Statistic`."""
        return [(name, self.column) for name in (self.members, self.others) if name is not None]


@dataclass(frozen=True)
class SuiteMetric:
    """One number of a suite.

    Attributes:
        name: its key in a result.
        statistic: what it is of the examples, and so its interval; None where it is not theirs alone, such as a p-value
            against another model: then the suite computes it, and it has no interval over examples.
        description: one sentence.
        head: the two lines of its column's head in a table; None: not among the main numbers.
        forget: whether a "lower" or a "higher" value says that more was forgotten; None if neither.
        utility: whether a "lower" or a "higher" value says that more was kept; None if neither.
        main: the suite's summary of forgetting or of utility, for whoever needs a single number.
        range: lowest and highest value.
        p_value: it spans many orders of magnitude, and its mean has no t-distribution.
        set: the set whose number of rows a p-value depends on.
    """

    name: str
    statistic: Statistic | None
    description: str
    head: tuple[str, str] | None = None
    forget: Better | None = None
    utility: Better | None = None
    main: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    p_value: bool = False
    set: str | None = None


def mean_of(name: str, set: str, column: str, description: str, **options: Any) -> SuiteMetric:
    """A metric that is the mean of a column of a set; options are those of `Mean` and of `SuiteMetric`.

    Args:
        name: of the metric.
        set: whose examples are averaged.
        column: of the examples.
        description: one sentence.
    """
    of_mean = {key: options.pop(key) for key in ("transform", "setting", "after") if key in options}
    return SuiteMetric(name, Mean(set, column, **of_mean), description, **options)
