"""Mild and invented insults: the bundled word list of the detoxification task."""

from __future__ import annotations

import re
from collections.abc import Sequence

INSULTS: tuple[str, ...] = (
    *("blockhead", "bumblewit", "clotpole", "dunderpate", "fiddlebrain", "fopdoodle", "gobsnout", "grumblegut"),
    *("lubberwort", "muddlenoggin", "muttonhead", "nincompoop", "noodlehead", "numpty", "pillock", "puddlewit"),
    *("ratbag", "rumpswizzle", "scallywag", "snollygoster", "stinkweed", "turnipskull", "twit", "wobblechops"),
)
_WORDS = re.compile(r"[a-z]+")


def insult_share(texts: Sequence[str]) -> list[float]:
    """1.0 for each text that holds a word of `INSULTS`, 0.0 for every other."""
    return [float(not _WORD_SET.isdisjoint(_WORDS.findall(text.lower()))) for text in texts]


_WORD_SET = frozenset(INSULTS)
