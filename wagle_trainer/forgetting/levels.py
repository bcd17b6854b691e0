"""How likely the answers of all sets are, with and without a patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from wagle_trainer.evaluation.own_rows import EncodedRow
from wagle_trainer.forgetting.examples import probabilities
from wagle_trainer.forgetting.settings import ROOM, ForgetSettings

SETS = ("forget", "retain", "unseen")


def spread(length: int, number: int) -> Sequence[int]:
    """At most `number` of the places 0 to `length` - 1, evenly spread."""
    number = min(number, length)
    return [index * length // number for index in range(number)]


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

    def of_some(self, number: int) -> Yardstick:
        """The same with at most `number` retain and unseen answers, evenly spread, for looks in the middle of a try.

        Args:
            number: of answers of each set.
        """
        places = {name: spread(len(self.sets[name]), number) for name in SETS if name in self.sets}
        places |= {"forget": range(len(self.sets["forget"]))}
        sets = {name: [self.sets[name][place] for place in found] for name, found in places.items()}
        before = {name: [self.before.values[name][place] for place in found] for name, found in places.items()}
        return replace(self, sets=sets, before=Levels(before))

    def has_room(self, levels: Levels) -> bool:
        """Whether the goal is met with room to spare, so that rounding and luck do not undo it."""
        return levels.mean("forget") <= self.target()

    def target(self) -> float:
        """Mean probability of the forget answers at which the goal is met with room to spare."""
        return ROOM * self.goal()

    def lowest_share(self, levels: Levels) -> float:
        """Share of their probability that the retain and unseen answers keep, of the set that keeps less."""
        return min(levels.mean(name) / self.before.mean(name) for name in ("retain", "unseen"))
