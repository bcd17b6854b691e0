"""How likely the answers of all sets are, with and without a patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from wagle_trainer.evaluation.own_rows import EncodedRow
from wagle_trainer.forgetting.examples import probabilities
from wagle_trainer.forgetting.settings import ForgetSettings

SETS = ("forget", "retain", "unseen")
# A try that has left so much of the probability after a quarter of its steps is given up: its steps are too small.
_HOPELESS, _EARLY = 0.9, 0.25
# A try ends when it has reached this share of the goal.
_ROOM = 0.5


@dataclass(frozen=True)
class Levels:
    """Answer probabilities by set, in the order of the rows.

    Attributes:
        values: "forget", "retain" and "unseen" -> one probability for each row.
    """

    values: Mapping[str, Sequence[float]]

    def mean(self, name: str) -> float:
        """Mean answer probability of a set."""
        return fmean(self.values[name])


def levels_of(
    model: Any, tokenizer: Any, sets: Mapping[str, Sequence[EncodedRow]], settings: ForgetSettings
) -> Levels:
    """Levels of a model on some sets."""
    size = settings.eval_batch_size
    return Levels({name: probabilities(model, tokenizer, examples, size) for name, examples in sets.items()})


@dataclass(frozen=True)
class Yardstick:
    """What the reference model knows, and how much of it has to go and to stay.

    Attributes:
        tokenizer: the model's.
        sets: name -> examples, whose target tokens are measured.
        before: levels of the reference model.
        settings: goal and floor.
    """

    tokenizer: Any
    sets: Mapping[str, Sequence[EncodedRow]]
    before: Levels
    settings: ForgetSettings

    def levels(self, model: Any, names: Sequence[str] = SETS) -> Levels:
        """Levels of a model."""
        return levels_of(model, self.tokenizer, {name: self.sets[name] for name in names}, self.settings)

    def goal(self) -> float:
        """Mean probability of the forget answers at which they count as forgotten."""
        return self.settings.forget_goal * self.before.mean("forget")

    def floor(self, name: str) -> float:
        """Lowest mean probability that the answers of a set may have."""
        return self.settings.utility_floor * self.before.mean(name)

    def met(self, levels: Levels) -> bool:
        """Whether the forget goal is met."""
        return levels.mean("forget") <= self.goal()

    def within_floor(self, levels: Levels) -> bool:
        """Whether retain and unseen answers are above the floor."""
        return all(levels.mean(name) >= self.floor(name) for name in ("retain", "unseen"))

    def check(self, model: Any) -> Levels:
        """Levels in the middle of a try: of retain and unseen set only where the goal is met."""
        forget = self.levels(model, ("forget",))
        if not self.met(forget):
            return forget
        return Levels({**forget.values, **self.levels(model, ("retain", "unseen")).values})

    def is_good(self, levels: Levels) -> bool:
        """Whether goal and floor are met."""
        return self.met(levels) and self.within_floor(levels)

    def has_room(self, levels: Levels) -> bool:
        """Whether the goal is met with room to spare, so that rounding and luck do not undo it."""
        return levels.mean("forget") <= _ROOM * self.goal()

    def is_hopeless(self, levels: Levels, done: float) -> bool:
        """Whether next to nothing has happened after a quarter of the steps.

        Args:
            levels: as they are now.
            done: share of the steps that are made.
        """
        return done >= _EARLY and levels.mean("forget") > _HOPELESS * self.before.mean("forget")
