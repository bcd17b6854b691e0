"""How measures move as forget sets grow or requests follow one another: MUSE's scalability and sustainability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from scipy.stats import linregress

from wagle_trainer.evaluation.results import metrics_of


def request_curve(
    results: Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[str] | None = None,
    x: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The course of each metric over a sequence of evaluations, and how fast it moves.

    Scalability (C5 of Shi et al. 2024, arXiv 2407.06460): one evaluation for each size of the forget set, such as
    MUSE's `scal` splits, each model unlearned from the same start; `x` is the size. Sustainability (C6): one
    evaluation after each request, such as the `sust` splits, each model unlearned from the one before; `x` counts the
    requests.
    The paper plots the curves; a slope near zero says that nothing more is lost with more requests.

    Args:
        results: what a suite returned, in the order of size or of the requests; at least two.
        metrics: which metrics; None for all numbers that every result has.
        x: where on the axis each result is, in increasing order; None for 1, 2, 3, ...

    Returns:
        A dict that JSON can hold: `x`; `curve`, metric -> its values; `slope`, metric -> change per unit of `x` by
        least squares; `change`, metric -> its last value minus its first.

    Raises:
        ValueError: fewer than two results, `x` of another length or not increasing, no metric is left, or a result
            lacks one (the message says which).

    Example:
        >>> request_curve([{"retain_knowmem_ROUGE": 0.5}, {"retain_knowmem_ROUGE": 0.25}])["slope"]
        {'retain_knowmem_ROUGE': -0.25}
    """
    if len(results) < 2:
        raise ValueError(f"A curve needs at least two results, not {len(results)}.")
    places = [float(value) for value in (range(1, len(results) + 1) if x is None else x)]
    if len(places) != len(results):
        raise ValueError(f"x has {len(places)} entries and there are {len(results)} results: they belong together.")
    if any(after <= before for before, after in pairwise(places)):
        raise ValueError(f"x must increase from result to result, but is {places}.")
    numbers = [metrics_of(result) for result in results]
    names = list(metrics) if metrics is not None else [n for n in numbers[0] if all(n in found for found in numbers)]
    if not names:
        raise ValueError("There is no metric that all results have.")
    for name in names:
        for index, found in enumerate(numbers):
            if name not in found:
                raise ValueError(f"Result {index} has no number {name!r}.")
    curve = {name: [found[name] for found in numbers] for name in names}
    return {
        "x": places,
        "curve": curve,
        "slope": {name: float(linregress(places, values).slope) for name, values in curve.items()},
        "change": {name: values[-1] - values[0] for name, values in curve.items()},
    }
