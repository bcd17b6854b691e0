"""Texts as questions and answers, which attacks take: a beginning, and how it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wagle_trainer.data import QAFormat


def as_questions(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Texts as what attacks take: a prompt as the question, what follows as the answer; a text is cut in its middle.

    Args:
        rows: with `prompt` and `rejected` or `completion`, or with `text`.

    Raises:
        ValueError: a row is in another format, or has a text of one word.
    """
    found = []
    for index, row in enumerate(rows):
        if isinstance(row.get("prompt"), str):
            question, answer = row["prompt"], row.get("rejected", row.get("completion"))
        elif isinstance(row.get("text"), str):
            words = row["text"].split(" ")
            question, answer = (" ".join(part) for part in (words[: len(words) // 2], words[len(words) // 2 :]))
            answer = f" {answer}"
        else:
            raise ValueError(
                f"Attacks need rows of text, of prompt and completion, or of prompt, chosen and rejected, as strings; row "
                f"{index} has {', '.join(row)}."
            )
        if not question or not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"Attacks need a beginning and a continuation; row {index} has only one of them.")
        found.append({"question": question, "answer": answer})
    return found


def text_format(qa: QAFormat) -> QAFormat:
    """A format in which a text goes on after its beginning, with nothing in between."""
    return QAFormat(qa.tokenizer, "plain", question_prefix="", question_suffix="", answer_prefix="")
