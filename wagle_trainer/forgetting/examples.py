"""Rows of a user's file as a model sees them: prompts, tokens, and how likely their answers are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation.answer_scores import score_answers
from wagle_trainer.evaluation.own_rows import EncodedRow, encode_row
from wagle_trainer.evaluation.suites.suite_inputs import Row


def as_questions(rows: Iterable[Row]) -> list[Row]:
    """Rows with conversations of one question and one answer as `question` and `answer`; other rows as they are.

    In the chat style the model sees the same tokens.
    """
    listed = [dict(row) for row in rows]
    pairs = [_pair(row) for row in listed]
    if not all(pairs):
        return list(listed)
    dropped = ("messages", "prompt", "completion")
    return [
        {"question": pair[0], "answer": pair[1], **{key: row[key] for key in row if key not in dropped}}
        for row, pair in zip(listed, pairs, strict=True)
        if pair is not None
    ]


def _pair(row: Row) -> tuple[str, str] | None:
    """Question and answer of a conversation of two turns; None for anything else."""
    turns = row.get("messages")
    if not turns and isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        turns = [*row["prompt"], *row["completion"]]
    if not turns or [turn.get("role") for turn in turns] != ["user", "assistant"]:
        return None
    return str(turns[0]["content"]), str(turns[1]["content"])


def encode(qa: QAFormat, rows: Iterable[Row], name: str) -> list[EncodedRow]:
    """The rows of one set as examples.

    Args:
        qa: how questions and answers become text.
        rows: of one of the kinds that `evaluate_custom` takes.
        name: of the set, for errors.

    Raises:
        ValueError: a row is of no known kind; the message names set and row.
    """
    return [encode_row(qa, row, f"Row {index} of the {name} set") for index, row in enumerate(rows)]


def probabilities(model: Any, tokenizer: Any, examples: Sequence[EncodedRow], batch_size: int = 32) -> list[float]:
    """Probability of each answer: geometric mean over its tokens, in [0, 1].

    Raises:
        FloatingPointError: a log-probability is not finite.
    """
    scores = score_answers(
        model,
        [example.encoded for example in examples],
        [f"row {index}" for index in range(len(examples))],
        eos_token_id=tokenizer.eos_token_id,
        batch_size=batch_size,
        progress=False,
    )
    return [math.exp(score.mean_log_prob) for score in scores]
