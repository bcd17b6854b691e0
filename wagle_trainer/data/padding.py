"""Padding of sets that were tokenized elsewhere: taken out, so that no loss is on it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

_LISTS = ("input_ids", "labels", "completion_mask", "assistant_masks")


def without_padding(dataset: Dataset, tokenizer: Any, name: str) -> Dataset:
    """A tokenized set without its padding; the set itself where it has none.

    Labels that are copies of `input_ids`, and labels made from them, would teach padding. It is what the attention mask
    leaves out, and a run of pad tokens at either end. Where padding is the end-of-sequence token, the first of a run at the end
    is the end of the text; where it is the beginning-of-sequence token, the last of a run at the beginning is the text's.

    Args:
        dataset: with `input_ids`.
        tokenizer: with the padding's token.
        name: of the set, for the warning.
    """
    rows = dataset.with_format(None)
    masks = rows["attention_mask"] if "attention_mask" in rows.column_names else [None] * len(rows)
    kept = [_real(ids, mask, tokenizer) for ids, mask in zip(rows["input_ids"], masks, strict=True)]
    padding = [len(ids) - len(positions) for ids, positions in zip(rows["input_ids"], kept, strict=True)]
    if not any(padding):
        return dataset
    warnings.warn(
        f"{sum(padding):,} tokens in {sum(map(bool, padding)):,} of {len(rows):,} rows of the {name} set are padding: they are "
        "taken out, and no loss is on them.",
        stacklevel=2,
    )
    columns = [column for column in _LISTS if column in rows.column_names]
    return Dataset.from_dict(
        {
            column: [[values[i] for i in positions] for values, positions in zip(rows[column], kept, strict=True)]
            for column in columns
        }
    )


def _real(ids: Sequence[int], mask: Sequence[int] | None, tokenizer: Any) -> range | list[int]:
    """Positions of tokens that are no padding."""
    positions = range(len(ids)) if mask is None else [i for i, real in enumerate(mask) if real]
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or not positions:
        return positions
    start, end = 0, len(positions)
    while end > start and ids[positions[end - 1]] == pad:
        end -= 1
    while start < end and ids[positions[start]] == pad:
        start += 1
    if pad == getattr(tokenizer, "eos_token_id", None) and end < len(positions):
        end += 1
    if pad == getattr(tokenizer, "bos_token_id", None) and start > 0:
        start -= 1
    return positions[start:end]
