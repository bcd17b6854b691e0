"""Which words of an answer count: those that tell it apart from other answers.

In "The capital of France is Paris." all words but the last are in the question or in every answer of that form. They say
nothing about what the model knows, and a model that forgets should still be able to write them. The rule is about
text alone, so it does not depend on a model or a tokenizer: a word counts if it is not in the question, and not one that the
answers share: in half of those of the set and, where retain answers are known, in any of these. Where all rows are about one
person, all answers have the name, and no retain answer does: it counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from wagle_trainer.evaluation.own_rows import EncodedRow
from wagle_trainer.models.log_probs import IGNORE_INDEX

_WORD = re.compile(r"\w+")
# Of fewer answers, what half of them share may be what is asked.
_FEWEST_ANSWERS = 4


def telling_words(examples: Sequence[EncodedRow], kept: Sequence[EncodedRow] | None = None) -> list[frozenset[str]]:
    """The words of each answer that count, in lower case.

    Args:
        examples: of one set.
        kept: of the retain set, if there is one.

    Returns:
        For each example the words of its answer that are neither in its question nor shared, that is in half of the answers
        and in a kept one; all of its words where none would be left. In a set of fewer than four answers only those of
        the question are left out.
    """
    answers = [_words(example.answer) for example in examples]
    occurrences = Counter(word for words in answers for word in words)
    limit = len(answers) / 2 if len(answers) >= _FEWEST_ANSWERS else float("inf")
    shared = {word for word, number in occurrences.items() if number >= limit}
    if kept is not None:
        shared &= {word for example in kept for word in _words(example.answer)}
    return [
        words - _words(example.question) - shared or words for example, words in zip(examples, answers, strict=True)
    ]


def only_words(example: EncodedRow, words: AbstractSet[str], tokenizer: Any) -> EncodedRow:
    """An example whose target tokens are those of some words of its answer.

    Args:
        example: question and answer.
        words: in lower case.
        tokenizer: the model's.

    Returns:
        The example with -100 on the other labels; unchanged where no token belongs to any of the words.
    """
    labels = example.encoded["labels"]
    places = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    targets = [labels[place] for place in places]
    texts = [str(tokenizer.decode(targets[:number])) for number in range(len(targets) + 1)]
    spans = [match.span() for match in _WORD.finditer(texts[-1]) if match.group().casefold() in words]
    counted = list(labels)
    for place, before, after in zip(places, texts, texts[1:], strict=False):
        if not any(len(before) < end and len(after) > start for start, end in spans):
            counted[place] = IGNORE_INDEX
    if all(label == IGNORE_INDEX for label in counted):
        return example
    return replace(example, encoded={**example.encoded, "labels": counted})


def only_telling_words(
    examples: Sequence[EncodedRow], tokenizer: Any, kept: Sequence[EncodedRow] | None = None
) -> list[EncodedRow]:
    """The examples of a set, with the words that count as their only target tokens.

    Args:
        examples: of one set.
        tokenizer: the model's.
        kept: of the retain set, if there is one.
    """
    counted = telling_words(examples, kept)
    return [only_words(example, words, tokenizer) for example, words in zip(examples, counted, strict=True)]


def words_in_order(text: str, words: AbstractSet[str]) -> list[str]:
    """Those of some words that are in a text, as it writes them.

    Args:
        text: such as an answer.
        words: in lower case.
    """
    return [match.group() for match in _WORD.finditer(text) if match.group().casefold() in words]


def _words(text: str) -> frozenset[str]:
    return frozenset(match.group().casefold() for match in _WORD.finditer(text))
