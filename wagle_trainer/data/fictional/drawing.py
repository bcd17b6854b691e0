"""Random draws that are the same in every version of Python."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import product
from typing import TypeVar

T = TypeVar("T")


def draw(rng: random.Random, items: Iterable[T], count: int) -> list[T]:
    """`count` different positions of `items`, in random order.

    Built on `random()` alone: Python does not promise that `sample` and `shuffle` give the same result in all its
    versions.
    """
    pool = list(items)
    for i in range(count):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]


def shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    """All of `items` in random order."""
    pool = list(items)
    return draw(rng, pool, len(pool))


def combinations(rng: random.Random, parts: Iterable[Iterable[str]], form: str, count: int) -> list[str]:
    """`count` different combinations of words, one out of each of `parts`, written as `form` says."""
    return [form.format(*words) for words in draw(rng, list(product(*parts)), count)]
