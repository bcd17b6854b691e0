"""The last answer of a conversation, which training and evaluation take, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def last_answer(messages: Sequence[Any], where: str) -> tuple[list[Any], Any]:
    """The turns before the last turn of the assistant, and that turn.

    Args:
        messages: of one conversation.
        where: its name, for the error.

    Raises:
        ValueError: there is none.
    """
    last = max((i for i, turn in enumerate(messages) if turn.get("role") == "assistant"), default=None)
    if last is None:
        raise ValueError(f"{where} has no turn of the assistant among its messages.")
    return list(messages[:last]), messages[last]


def said(turns: Sequence[Any]) -> str:
    """The text of some turns, one below the other."""
    return "\n".join(str(turn["content"]) for turn in turns if turn.get("content"))
