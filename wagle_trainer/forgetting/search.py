"""How large a patch, and where its learning rate begins: the rule, and nothing else.

Start with the smallest patch and the smallest learning rate. A try finds its own rate (see `course`). If it does not meet the
goal within the utility floor, take the next larger patch. Larger patches need smaller steps: it begins two rates below the
highest one of the try before, and three where that one lost what must stay.

The tries of the first round train on whole forget answers, which costs the other answers least. But an answer can become
unlikely by its other words alone, and the words that count stay as they are. So a second round trains on these words alone
(see `telling_words`), again from the smallest patch on. By default the patches of this round may change word embeddings, too,
and a try that loses the words does not count as within the floor (see `word_use`). The first try that meets the goal within the floor
is taken: it is the smallest patch of those tried. Where none does, the result is the try within the floor that forgot most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Try:
    """One patch that was trained, and what it did.

    Attributes:
        density: of the patch.
        learning_rate: the highest that the try took.
        steps: optimizer steps that were made.
        forget, retain, unseen: mean answer probabilities with the patch; None where the loss was not finite.
        met: whether the forget goal is met.
        within_floor: whether retain and unseen answers are above the utility floor.
        seconds: of training and measuring.
        telling: whether it was trained on the words that count alone.
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
    telling: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def next_try(
    tries: Sequence[Try], densities: Sequence[float], learning_rates: Sequence[float], max_tries: int
) -> tuple[float, float, bool] | None:
    """What to try next, by the rule of this file's head; None when the search is over.

    Args:
        tries: those made so far, in their order.
        densities, learning_rates: what may be tried, each from small to large.
        max_tries: how many at most.

    Returns:
        Density, first learning rate, and whether to train on the words that count alone.
    """
    if not tries:
        return densities[0], learning_rates[0], False
    last = tries[-1]
    if len(tries) >= max_tries or (last.met and last.within_floor):
        return None
    size = densities.index(last.density)
    if size + 1 == len(densities):
        return None if last.telling else (densities[0], learning_rates[0], True)
    rate = learning_rates.index(last.learning_rate) - (2 if last.within_floor else 3)
    return densities[size + 1], learning_rates[max(0, rate)], last.telling


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
