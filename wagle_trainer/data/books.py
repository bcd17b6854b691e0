"""Books: plain text in passages of as many tokens as are wanted, whole or cut into a beginning and its continuation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is in another encoding, or has no text.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not encoded in UTF-8 ({error}): save it as UTF-8.") from error
    if not text:
        raise ValueError(f"{path} has no text.")
    return text


def passages(
    texts: str | Iterable[str], tokenizer: Any, tokens: int, limit: int | None = None, source: str = "text"
) -> Dataset:
    """The texts, one after the other, in consecutive passages of equally many tokens.

    Args:
        texts: a book, or several texts; none of them runs on into the next.
        tokenizer: a fast `transformers` tokenizer, which says where a token lies in the text.
        tokens: tokens of a passage, without special ones. What is left at the end of a text is left out.
        limit: number of passages; None for all.
        source: what to call the texts in an error.

    Returns:
        Rows of `text`.

    Raises:
        ValueError: no text is as long as one passage.
    """
    from datasets import Dataset

    found: list[str] = []
    longest = 0
    for text in [texts] if isinstance(texts, str) else texts:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
        offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"]
        longest = max(longest, len(offsets))
        for start in range(0, len(offsets) - tokens + 1, tokens):
            found.append(text[offsets[start][0] : offsets[start + tokens - 1][1]].strip())
            if limit is not None and len(found) == limit:
                return Dataset.from_dict({"text": found})
    if not found:
        raise ValueError(
            f"The {source} has {longest} tokens, fewer than one passage of {tokens}: take shorter passages, or a longer text."
        )
    return Dataset.from_dict({"text": found})


def continuations(rows: Iterable[dict[str, Any]], tokenizer: Any, prompt_tokens: int) -> Dataset:
    """Passages as prompt-completion examples: the first tokens of each, and how it goes on.

    Args:
        rows: with `text`.
        tokenizer: as for `passages`.
        prompt_tokens: tokens of the prompt.

    Raises:
        ValueError: a passage is not longer than the prompt.
    """
    from datasets import Dataset

    prompts, completions = [], []
    for index, row in enumerate(rows):
        offsets = tokenizer(row["text"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) <= prompt_tokens:
            raise ValueError(
                f"Passage {index} has {len(offsets)} tokens, not more than the {prompt_tokens} of the prompt: take fewer "
                "prompt tokens, or longer passages."
            )
        end = offsets[prompt_tokens - 1][1]
        prompts.append(row["text"][:end])
        completions.append(row["text"][end:])
    return Dataset.from_dict({"prompt": prompts, "completion": completions})
