"""Checks of a study's arguments: what is wrong, and what is allowed, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.utils.cards import is_repo_id


def check_lists(arguments: Any, names: Sequence[str], may_be_empty: bool = False) -> None:
    """Refuse a list that is empty or holds a value twice, and anything else in its place.

    Args:
        arguments: a dataclass.
        names: of its fields.
        may_be_empty: whether an empty list is fine.

    Raises:
        ValueError: see above.
    """
    for name in names:
        values = getattr(arguments, name)
        if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
            raise ValueError(f"{name} must be a list of values, got {values!r}.")
        if len(set(values)) < len(values) or not (values or may_be_empty):
            least = "" if may_be_empty else "at least one value, and "
            raise ValueError(f"{name} must hold {least}none twice: {values}.")


def check_texts(arguments: Any, names: Sequence[str]) -> None:
    """Refuse anything but text, alone or in a list: YAML reads 1 as a number.

    Args:
        arguments: a dataclass.
        names: of its fields; None passes.

    Raises:
        ValueError: see above.
    """
    for name in names:
        given = getattr(arguments, name)
        values = given if isinstance(given, list) else [] if given is None else [given]
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name} must be text, got {given!r}.")


def check_numbers(
    arguments: Any, names: Sequence[str], allowed: Callable[[Any], bool], text: str, whole: bool = False
) -> None:
    """Refuse numbers out of range, alone or in a list.

    A number that YAML reads as text, such as 1e-3, becomes one.

    Args:
        arguments: a dataclass.
        names: of its fields.
        allowed: whether a finite number is fine.
        text: what it must be, such as "above 0".
        whole: whether it must be a whole number.

    Raises:
        ValueError: see above.
    """
    for name in names:
        given = getattr(arguments, name)
        try:
            numbers = [_number(value, whole) for value in (given if isinstance(given, list) else [given])]
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be {'whole numbers' if whole else 'numbers'}, got {given!r}.") from None
        if not all(math.isfinite(number) and allowed(number) for number in numbers):
            raise ValueError(f"{name} must be {text}, got {given!r}.")
        setattr(arguments, name, numbers if isinstance(given, list) else numbers[0])


def _number(value: Any, whole: bool) -> Any:
    if isinstance(value, str):
        value = int(value) if whole else float(value)
    if isinstance(value, bool) or (whole and not isinstance(value, int)):
        raise TypeError(value)
    return value + 0  # raises for what is no number


def check_model(model: str) -> None:
    """Refuse a folder that does not exist or holds no model; a hub id passes.

    Raises:
        FileNotFoundError: see above.
    """
    folder = Path(model)
    if not folder.exists() and not is_repo_id(model):
        raise FileNotFoundError(f"The model folder {model} does not exist, and no hub id is written like that.")
    if folder.exists() and not (folder / "config.json").exists():
        raise FileNotFoundError(f"{model} is no model folder: it holds no config.json.")
