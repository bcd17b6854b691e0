"""Intervals for a single run, from resampling its examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wagle_trainer.evaluation.suites import readings
from wagle_trainer.evaluation.suites.suite_metric import Bound
from wagle_trainer.reporting.statistics import LEVEL, Interval

Floats = NDArray[np.float64]
_RESAMPLES = 2000
_BATCH = 100  # resamples at a time: it bounds the memory


def example_interval(result: Mapping[str, Any], metric: str, seed: int = 0) -> Interval:
    """A metric of one evaluation with its 95 % percentile bootstrap interval over examples.

    Examples are drawn again within each set, all columns of an example together. The interval says how far the number
    depends on the questions, not how far it depends on the training seed.

    Args:
        result: what an evaluation returned.
        metric: one of its numbers. Without the `per_example` columns that it is made of, and with fewer than two
            examples, there is no interval.
        seed: of the resampling.

    Raises:
        ValueError: the metric is not what its examples say: the result was altered.
    """
    value = float(result[metric])
    bound = _bound(result, metric)
    if bound is None:
        return Interval(value)
    found = bound.value()
    if not np.isclose(found, value, rtol=1e-5, atol=1e-9):
        raise ValueError(
            f"{metric} is {value}, but its examples say {found}: the result was altered, or comes from a version that "
            "defined it otherwise."
        )
    if min(bound.sizes.values()) < 2:
        return Interval(value)
    random = np.random.default_rng(seed)
    drawn = [bound.of_weights(_weights(bound, random)) for _ in range(_RESAMPLES // _BATCH)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _bound(result: Mapping[str, Any], metric: str) -> Bound | None:
    """The statistic on the result's examples; None where it is not known or a column is missing."""
    for reading in readings(metric, result):
        if reading.statistic is not None:
            bound = reading.statistic.bind(result.get("per_example", {}), result.get("settings", {}))
            if bound is not None:
                return bound
    return None


def _weights(bound: Bound, random: np.random.Generator) -> dict[str, Floats]:
    """How often each example of each set is drawn, in a batch of resamples: (resamples, examples)."""
    return {
        name: random.multinomial(size, np.full(size, 1 / size), size=_BATCH).astype(np.float64)
        for name, size in bound.sizes.items()
    }
