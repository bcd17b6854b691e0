"""What metrics refuse: empty lists, lists that do not belong together, numbers that are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def vector(values: ArrayLike, name: str) -> Floats:
    """`values` as finite float64 (entries,), or a ValueError that calls them `name`."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"{name} must be a flat list of numbers, but has shape {numbers.shape}.")
    if numbers.size == 0:
        raise ValueError(f"{name} is empty.")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name}[{int(np.flatnonzero(~np.isfinite(numbers))[0])}] is not finite.")
    return numbers


def same_length(**lists: Any) -> None:
    """A ValueError unless the two lists, given by name, are as long and not empty."""
    (first, one), (second, other) = lists.items()
    if len(one) != len(other):
        raise ValueError(f"{first} has {len(one)} entries and {second} has {len(other)}: they belong together.")
    if len(one) == 0:
        raise ValueError(f"{first} and {second} are empty.")


def answers_with_options(correct: ArrayLike, wrong: Sequence[ArrayLike]) -> tuple[Floats, list[Floats]]:
    """Log-probabilities of correct answers, (examples,), and of each one's wrong answers.

    Raises:
        ValueError: an argument is empty or not finite, or the two differ in length.
    """
    right = vector(correct, "correct")
    same_length(correct=right, wrong=wrong)
    return right, [vector(options, f"wrong[{index}]") for index, options in enumerate(wrong)]
