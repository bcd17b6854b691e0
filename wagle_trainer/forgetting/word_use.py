"""Whether a model can still write the words of the forget answers.

A model may stop saying "Paris" because it lost the word, not because it forgot the fact. Then it cannot repeat the word
either. So the words are also measured in a text that repeats them: "Paris, Paris, Paris, Paris, Paris". There the next
repetition is likely under a model that has the word, whatever it knows of France.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wagle_trainer.evaluation.own_rows import EncodedRow
from wagle_trainer.forgetting.telling_words import telling_words, words_in_order
from wagle_trainer.models.log_probs import IGNORE_INDEX

# What stands between two repetitions: in the texts that are measured, and in those that are trained on.
MEASURED, TRAINED = ", ", " and "
_REPETITIONS = 5
# Of a long answer, so many of its words.
_MOST_WORDS = 6


def repetitions(
    examples: Sequence[EncodedRow],
    tokenizer: Any,
    between: str = MEASURED,
    kept: Sequence[EncodedRow] | None = None,
) -> list[EncodedRow]:
    """Texts that repeat the words of each answer that count; the last repetition is the target.

    Args:
        examples: the forget set.
        tokenizer: the model's.
        between: what stands between two repetitions.
        kept: the retain set, if there is one (see `telling_words`).
    """
    return [
        _repeated(
            " ".join(words_in_order(example.answer, words)[:_MOST_WORDS]) or example.answer.strip(), tokenizer, between
        )
        for example, words in zip(examples, telling_words(examples, kept), strict=True)
    ]


def _repeated(phrase: str, tokenizer: Any, between: str) -> EncodedRow:
    start = between.join([phrase] * (_REPETITIONS - 1)) + between
    tokens = _tokens(start + phrase, tokenizer)
    prompt = _tokens(start.rstrip(), tokenizer)
    shared = next((i for i, pair in enumerate(zip(prompt, tokens, strict=False)) if pair[0] != pair[1]), len(prompt))
    shared = min(shared, len(tokens) - 1)  # at least one token is the target, also of an answer without words
    labels = [IGNORE_INDEX] * shared + tokens[shared:]
    encoded = {"input_ids": tokens, "labels": labels}
    return EncodedRow(start.rstrip(), phrase, tokens[:shared], encoded)


def _tokens(text: str, tokenizer: Any) -> list[int]:
    tokens = list(tokenizer(text)["input_ids"])
    return tokens[:-1] if tokens and tokens[-1] == tokenizer.eos_token_id else tokens
