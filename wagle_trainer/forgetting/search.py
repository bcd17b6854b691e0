"""How large a patch and which learning rate: the rule, and nothing else.

Start with the smallest patch and the smallest learning rate. Raise the learning rate until the forget goal is met or the
utility floor is broken; then take the next larger patch, and begin one learning rate below the last one that kept the floor
(larger patches need smaller steps). The first try that meets the goal within the floor is taken: it is the smallest patch
of those tried. Where none does, the result is the try within the floor that forgot most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Try:
    """One patch that was trained, and what it did.

    Attributes:
        density, learning_rate: of the patch.
        steps: optimizer steps that were made.
        forget, retain, unseen: mean answer probabilities with the patch; None where the loss was not finite.
        met: whether the forget goal is met.
        within_floor: whether retain and unseen answers are above the utility floor.
        seconds: of training and measuring.
    """

    density: float
    learning_rate: float
    steps: int
    forget: float | None
    retain: float | None
    unseen: float | None
    met: bool
    within_floor: bool
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def next_try(
    tries: Sequence[Try], densities: Sequence[float], learning_rates: Sequence[float], max_tries: int
) -> tuple[float, float] | None:
    """Density and learning rate to try next, by the rule of this file's head; None when the search is over.

    Args:
        tries: those made so far, in their order.
        densities, learning_rates: what may be tried, each from small to large.
        max_tries: how many at most.
    """
    if not tries:
        return densities[0], learning_rates[0]
    last = tries[-1]
    if len(tries) >= max_tries or (last.met and last.within_floor):
        return None
    rate = learning_rates.index(last.learning_rate)
    if last.within_floor and rate + 1 < len(learning_rates):
        return last.density, learning_rates[rate + 1]
    size = densities.index(last.density)
    if size + 1 == len(densities):
        return None
    kept = [t for t in tries if t.density == last.density and t.within_floor]
    best = max((learning_rates.index(t.learning_rate) for t in kept), default=0)
    return densities[size + 1], learning_rates[max(0, best - 1)]


def best_try(tries: Sequence[Try]) -> int | None:
    """Index of the try to keep, by the rule of this file's head; None if none can be used.

    Where every try broke the floor, the one that lost least counts.
    """
    usable = [index for index, one in enumerate(tries) if one.forget is not None]
    if not usable:
        return None
    done = [index for index in usable if tries[index].met and tries[index].within_floor]
    if done:
        return done[0]
    within = [index for index in usable if tries[index].within_floor]
    if within:
        return min(within, key=lambda index: tries[index].forget or 0.0)
    return max(usable, key=lambda index: min(tries[index].retain or 0.0, tries[index].unseen or 0.0))
