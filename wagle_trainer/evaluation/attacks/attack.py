"""What an attack is given, what it gives back, and the table of all of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wagle_trainer.data.formatting import QAFormat
from wagle_trainer.evaluation.suite_inputs import Row
from wagle_trainer.utils.registry import Registry

Values = Mapping[str, float]


@dataclass
class Target:
    """The model under attack, and how it is judged.

    Attributes:
        before, after: the models before and after unlearning. An attack leaves both as it found them.
        tokenizer: their tokenizer.
        rows: the questions and answers that were to be forgotten.
        measure: (model, tokenizer, rows) -> how much the model knows of them, by name; the first name counts.
        qa: how questions and answers become tokens.
        batch_size: of forward passes and of generation.
        seed: of everything random.
        progress: whether to show progress bars.
    """

    before: Any
    after: Any
    tokenizer: Any
    rows: Sequence[Row]
    measure: Callable[[Any, Any, Sequence[Row]], Values]
    qa: QAFormat
    batch_size: int = 32
    seed: int = 42
    progress: bool = True
    _known: dict[tuple, tuple[Values, Values]] = field(default_factory=dict)

    def knows(self, rows: Sequence[Row] | None = None) -> Values:
        """What `after`, as it is now, knows of `rows` (of all of them if None)."""
        return self.measure(self.after, self.tokenizer, self.rows if rows is None else rows)

    def baselines(self, rows: Sequence[Row] | None = None) -> tuple[Values, Values]:
        """What `before` and `after` know of `rows` unattacked; measured once. To be called before weights are touched."""
        rows = self.rows if rows is None else rows
        key = tuple((row["question"], row["answer"]) for row in rows)
        if key not in self._known:
            before = self.measure(self.before, self.tokenizer, rows)
            self._known[key] = (before, self.measure(self.after, self.tokenizer, rows))
        return self._known[key]


@dataclass(frozen=True)
class Point:
    """One strength of an attack.

    Attributes:
        x: how strong, a number in the attack's own unit, such as steps; or a text, such as which prompt.
        values: what the attacked model knows, by measure; the first measure counts.
        before, after: the same of the model before unlearning and of the one after it, without the attack.
    """

    x: float | str
    values: Values
    before: Values
    after: Values


Attack = Callable[..., Sequence[Point]]
_attacks: Registry[Attack] = Registry("attack")
AttackType = TypeVar("AttackType", bound=Attack)


def register_attack(
    name: str, *, unit: str = "strength", columns: Sequence[str] = ()
) -> Callable[[AttackType], AttackType]:
    """Decorator: enter an attack under `name`.

    An attack is a function of a `Target` and of keyword arguments, its options; it returns one `Point` for each strength
    that it tried. An option without a default has to be given by the user.

    Args:
        name: of the attack.
        unit: what `Point.x` is, in words: the axis of its curve.
        columns: what the rows must have besides `question` and `answer`.

    Example:
        ```python
        @register_attack("louder", unit="exclamation marks")
        def louder(target, *, marks=(1, 3)):
            points = []
            for count in marks:
                rows = [{**row, "question": row["question"] + "!" * count} for row in target.rows]
                points.append(Point(count, target.knows(rows), *target.baselines()))
            return points
        ```
    """

    def enter(attack: AttackType) -> AttackType:
        attack.unit, attack.columns = unit, tuple(columns)  # type: ignore[attr-defined]
        return _attacks.register(name)(attack)  # type: ignore[return-value]

    return enter


def get_attack(name: str) -> Attack:
    """The function of an attack.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return _attacks.get(name)


def list_attacks() -> list[str]:
    """Names of all registered attacks."""
    return _attacks.names()


def describe_attacks() -> dict[str, str]:
    """Name -> first paragraph of the docstring, of all registered attacks."""
    return _attacks.describe()


def required_options(attack: Attack) -> list[str]:
    """Options of an attack that have no default."""
    parameters = inspect.signature(attack).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]


class NothingForgottenError(ValueError):
    """The model after unlearning knows no less than the one before it: there is no share that could come back."""


def share_that_came_back(before: float, after: float, attacked: float) -> float:
    """(attacked - after) / (before - after): 0 where an attack changed nothing, 1 where all is known again.

    Below 0 where the attacked model knows even less, above 1 where it knows more than before unlearning.

    Args:
        before, after: how much the models before and after unlearning know.
        attacked: how much the attacked model knows.

    Raises:
        NothingForgottenError: `after` is not below `before`.
        ValueError: a number is not finite.
    """
    numbers = {"before": before, "after": after, "attacked": attacked}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"What the model knows ({name}) is {number}, not a finite number.")
    if after >= before:
        raise NothingForgottenError(
            f"Nothing was forgotten: the model after unlearning knows {after:.6g}, the one before it {before:.6g}. There "
            "is no share that could come back. Are the two models given in the right order, and with the questions "
            "that were to be forgotten?"
        )
    return (attacked - after) / (before - after)
