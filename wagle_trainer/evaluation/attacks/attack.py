"""What an attack takes and returns, and the registry of all attacks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation.suites.suite_inputs import Row
from wagle_trainer.utils.registry import Registry

Values = Mapping[str, float]


@dataclass
class Target:
    """The model under attack, and how knowledge is measured.

    Attributes:
        before, after: the reference model and the unlearned model. An attack leaves both as it found them.
        tokenizer: their tokenizer.
        rows: the forget questions and answers.
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
        """How much `after`, in its present state, knows of `rows` (of all of them if None).

        Args:
            rows: questions and answers; all of the forget set if None.
        """
        return self.measure(self.after, self.tokenizer, self.rows if rows is None else rows)

    def baselines(self, rows: Sequence[Row] | None = None) -> tuple[Values, Values]:
        """How much `before` and `after` know of `rows` without an attack. Call it before weights are changed.

        Each set of rows is measured once.

        Args:
            rows: questions and answers; all of the forget set if None.
        """
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
        x: the strength, a number in the attack's own unit, such as steps; or a text, such as the name of a prompt.
        values: how much the attacked model knows, by measure; the first measure counts.
        before, after: the same of the reference model and of the unlearned model, without the attack.
    """

    x: float | str
    values: Values
    before: Values
    after: Values


Attack = Callable[..., Sequence[Point]]
_attacks: Registry[Attack] = Registry("attack")
AttackType = TypeVar("AttackType", bound=Attack)


def register_attack(
    name: str, *, unit: str = "strength", columns: Sequence[str] = (), check: Callable[..., None] | None = None
) -> Callable[[AttackType], AttackType]:
    """Decorator: enter an attack under `name`.

    An attack is a function of a `Target` and of keyword arguments, its options; it returns one `Point` for each strength
    that it tried. The user has to pass an option without a default.

    Args:
        name: of the attack.
        unit: of `Point.x`, in words: the label of the curve's axis.
        columns: required columns of the rows besides `question` and `answer`.
        check: (rows, **options) raises a ValueError where options are out of range; it is called with all of them,
            before a model is loaded. The attack is to call it, too, for those who call the attack itself.

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
        attack.unit, attack.columns, attack.check = unit, tuple(columns), check  # type: ignore[attr-defined]
        return _attacks.register(name)(attack)  # type: ignore[return-value]

    return enter


def get_attack(name: str) -> Attack:
    """The function of an attack.

    Args:
        name: a registered name.

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
    """The unlearned model knows no less than the reference model: there is no recovery rate."""


def recovery_rate(before: float, after: float, attacked: float) -> float:
    """(attacked - after) / (before - after): 0 where an attack recovered nothing, 1 where it recovered everything.

    Below 0 where the attacked model knows even less than the unlearned one, above 1 where it knows more than the
    reference model.

    Args:
        before, after: how much the reference model and the unlearned model know.
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
            f"Nothing was forgotten: the unlearned model knows {after:.6g}, the reference model {before:.6g}. There is no "
            "recovery rate. Are the two models passed in the right order, and with the forget questions?"
        )
    return (attacked - after) / (before - after)
