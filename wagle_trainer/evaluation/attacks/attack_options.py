"""Options of attacks, checked against the types that the attack's signature names, before a model runs."""

from __future__ import annotations

import collections.abc
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def checked_options(name: str, attack: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an attack in their types; a single value where a list belongs is a list of one.

    Args:
        name: the attack's, for errors.
        attack: its annotations say what the options are; those of other types than numbers, texts, rows and lists of
            them are not checked.
        options: option -> value, as JSON or Python holds it.

    Raises:
        ValueError: a value is of another type, or not finite.
    """
    try:
        hints = typing.get_type_hints(attack)
    except (NameError, TypeError):  # an annotation that names what its module does not hold; a callable without any
        hints = {}
    return {
        option: _checked(f"The option {option} of the attack {name!r}", value, hints.get(option))
        for option, value in options.items()
    }


def check_positive(**options: float) -> None:
    """Raise ValueError, which names the option, unless all are above zero."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}.")


def _checked(what: str, value: Any, hint: Any) -> Any:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        fits = [part for part in arguments if part not in _NAMES or _is(value, part)]
        if not fits:
            raise ValueError(f"{what} must be {' or '.join(_NAMES[part] for part in arguments)}, not {_short(value)}.")
        return value
    if typing.get_origin(hint) is collections.abc.Sequence:
        [item] = arguments
        if item in _PLURALS:
            values = [value] if _is(value, item) else value
            if not isinstance(values, list | tuple | range) or not all(_is(part, item) for part in values):
                raise ValueError(f"{what} must be {_PLURALS[item]} in a list, not {_short(value)}.")
            return values
        if isinstance(value, str | int | float | bool | None | Mapping):
            raise ValueError(f"{what} must be a list of rows, not {_short(value)}.")
    elif hint in _NAMES and not _is(value, hint):
        raise ValueError(f"{what} must be {_NAMES[hint]}, not {_short(value)}.")
    return value


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
