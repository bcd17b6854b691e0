"""Names in questions: where another one can be put in their place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Words that begin a sentence with a capital letter without being a name.
STARTERS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "before",
        "can",
        "could",
        "critics",
        "describe",
        "did",
        "do",
        "does",
        "explain",
        "for",
        "from",
        "give",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "is",
        "list",
        "me",
        "name",
        "of",
        "on",
        "please",
        "question",
        "tell",
        "the",
        "there",
        "this",
        "to",
        "was",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "write",
        "you",
    ]
)
# Words inside a name: the University of Oxford, Ludwig van Beethoven.
_INNER = frozenset(["da", "de", "del", "der", "di", "du", "la", "le", "of", "the", "van", "von"])
APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
_POSSESSIVES = tuple(f"{mark}s" for mark in APOSTROPHES)
_WORD = re.compile(r"[^\s?!,;:\"\u201c\u201d()]+")
_NUMBER = re.compile(r"\d[\d.,]*$")


@dataclass(frozen=True)
class Slot:
    """A question with a name taken out.

    Attributes:
        before, after: the text on both sides of the name, without surrounding white space.
    """

    before: str
    after: str

    def fill(self, name: str) -> str:
        """The question about another name."""
        space = "" if not self.after or self.after[0] in f"?!.,;:{APOSTROPHES}" else " "
        start = f"{self.before} " if self.before else ""
        return f"{start}{name}{space}{self.after}"


def split_at_name(question: str) -> tuple[Slot, str] | None:
    """Take the longest name out of a question; None where it has none.

    A name is a run of words with a capital letter or of numbers; small words such as "of" may stand inside.

    Example:
        >>> split_at_name("What is the capital of France?")
        (Slot(before='What is the capital of', after='?'), 'France')
    """
    runs = name_spans(question)
    if not runs:
        return None
    start, end = max(runs, key=lambda run: run[1] - run[0])
    return Slot(question[:start].strip(), question[end:].strip()), question[start:end]


def name_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each name in a text."""
    words = [(match.start(), match.end(), match.group()) for match in _WORD.finditer(text)]
    spans: list[tuple[int, int]] = []
    index = 0
    while index < len(words):
        if not _is_name(words[index][2], index == 0 or _begins_sentence(text, words[index][0])):
            index += 1
            continue
        last = index
        following = index + 1
        while following < len(words) and _joined(text, words[following - 1][1], words[following][0]):
            word = words[following][2]
            if _is_name(word, False):
                last = following
            elif word not in _INNER or following - last > 2:
                break
            following += 1
        start, end = words[index][0], words[last][1]
        spans.append((start, end - (len(text[start:end]) - len(_without_ending(text[start:end])))))
        index = last + 1
    return spans


def leading_name(text: str) -> str | None:
    """The name that a text begins with; None where it begins with something else."""
    stripped = text.strip()
    spans = name_spans(f"the {stripped}")  # not at the start of a sentence
    found = next(((start - 4, end - 4) for start, end in spans), None)
    if found is None or found[0] != 0:
        # "the Philippines": the article belongs to what is asked about.
        if found is not None and stripped[: found[0]].strip().lower() == "the":
            return stripped[: found[1]]
        return None
    return stripped[: found[1]]


def normalised(text: str) -> str:
    """A text without what does not tell two of them apart: case, punctuation, white space."""
    return " ".join(re.findall(r"\w+", text.lower()))


def mentions(text: str, names: Iterable[str]) -> bool:
    """Whether a text has one of the (normalised) names in it, as whole words."""
    padded = f" {normalised(text)} "
    return any(f" {name} " in padded for name in names if name)


def _is_name(word: str, at_start: bool) -> bool:
    bare = _without_ending(word.strip(f"{APOSTROPHES}*_`.-"))
    if _NUMBER.fullmatch(bare):
        return True
    return bare[:1].isupper() and not (at_start and bare.lower() in STARTERS)


def _without_ending(name: str) -> str:
    """Without the possessive, which belongs to the question."""
    return name[:-2] if name.endswith(_POSSESSIVES) else name.rstrip(".")


def _joined(text: str, end: int, start: int) -> bool:
    """Whether only white space lies between two words."""
    return text[end:start].strip() == "" and not text[:end].endswith((*_POSSESSIVES, "."))


def _begins_sentence(text: str, start: int) -> bool:
    return text[:start].rstrip()[-1:] in (".", "!", "?", ":", '"', "\N{LEFT DOUBLE QUOTATION MARK}")
