"""How one try goes on: its learning rate, and when it ends. The rule, and nothing else.

A try starts with a low rate and looks at the forget answers every few steps. The goal, with room to spare, should be
reached at an even pace (of the logarithm, over half of the steps; the others are there to recover what was lost). Where a look
finds the pace too slow, the rate rises: by two rungs where it is slower than a third of it, by one otherwise. Once forgetting
is under way, only two slow looks in a row raise it. So the model itself says which rate it needs, in place of one try for each rate.

Where the goal is met and the utility floor is broken, the try goes on as long as that helps: the forget loss has faded by
then, and the retain loss takes back what was lost; a look that finds no recovery lowers the rate by one rung. The try ends when
that does not help either, when goal and floor are met with room to spare, one look after they are met without, and when the
highest rate is too slow as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from wagle_trainer.forgetting.levels import Levels, Yardstick

# The goal should be reached in one part of so many of the steps.
_HASTE = 2
# Share of the probability below which forgetting is under way.
_UNDER_WAY = 0.9
# Slower than this share of the pace: two rungs at once.
_FAR_TOO_SLOW = 1 / 3
# A retain or unseen set that has lost more than this cannot be expected to recover.
_LOST = 0.5
# Looks in a row without progress that end a try, and what counts as progress.
_PATIENCE, _PROGRESS = 2, 0.002


class Course:
    """The course of one try; ask `after` at each look.

    Args:
        yardstick: goal and floor.
        rates: learning rates, from small to large.
        first: the one to start with; one of `rates`.
        looks: how many there are in a whole try.

    Attributes:
        rung: index of the present rate.
        highest: index of the highest rate so far.
        good: whether the last look met goal and floor.
        reached: whether any look did.
    """

    def __init__(self, yardstick: Yardstick, rates: Sequence[float], first: float, looks: int):
        self.yardstick, self.rates = yardstick, list(rates)
        self.rung = self.highest = self.rates.index(first)
        self.good = self.reached = False
        self._pace = _HASTE * math.log(yardstick.before.mean("forget") / yardstick.target()) / max(1, looks)
        self._forget = yardstick.before.mean("forget")
        self._worst = -math.inf
        self._waited = 0

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return self.rates[self.rung]

    def after(self, levels: Levels) -> float | None:
        """Learning rate to go on with; None to end.

        Args:
            levels: as `Yardstick.check` returns them.
        """
        forget, before = max(levels.mean("forget"), 1e-12), self._forget
        self._forget = forget
        self.good = self.yardstick.met(levels) and self.yardstick.within_floor(levels)
        if self.good:
            ends = self.reached or self.yardstick.has_room(levels)
            self.reached = True
            return None if ends else self.rate
        if self.reached:  # a later state is worse than the good one
            return None
        if self.yardstick.met(levels):
            return self._recovering(levels)
        return self._forgetting(math.log(before / forget))

    def _forgetting(self, fell: float) -> float | None:
        if fell >= self._pace:
            self._waited = 0
            return self.rate
        self._waited += 1
        under_way = self._forget < _UNDER_WAY * self.yardstick.before.mean("forget")
        if self._waited < (_PATIENCE if under_way else 1):
            return self.rate
        if self.rung + 1 == len(self.rates):
            return self.rate if fell > _PROGRESS or self._waited < _PATIENCE else None
        rungs = 2 if fell < _FAR_TOO_SLOW * self._pace and not under_way else 1
        self.rung = self.highest = min(self.rung + rungs, len(self.rates) - 1)
        self._waited = 0
        return self.rate

    def _recovering(self, levels: Levels) -> float | None:
        worst = self.yardstick.lowest_share(levels)
        recovers = worst > self._worst + _PROGRESS
        self._worst = max(worst, self._worst)
        self._waited = 0 if recovers else self._waited + 1
        if worst < _LOST or self._waited > _PATIENCE:
            return None
        if not recovers:
            self.rung = max(0, self.rung - 1)
        return self.rate
