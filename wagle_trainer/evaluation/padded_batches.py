"""Batches with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor


def batches_by_length(lengths: Sequence[int], batch_size: int, *, equal: bool = False) -> list[list[int]]:
    """Positions of `lengths`, longest first, cut into batches of at most `batch_size`.

    The longest come first, so that memory which does not suffice shows at once and not after an hour.

    Args:
        lengths: of the examples.
        batch_size: most examples of a batch.
        equal: all examples of a batch have the same length.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    runs = [list(run) for _, run in groupby(order, key=lambda position: lengths[position])] if equal else [order]
    return [run[start : start + batch_size] for run in runs for start in range(0, len(run), batch_size)]


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> Tensor:
    """`rows` of tokens, filled up with `value` on one side: int64 (rows, longest row)."""
    longest = max(len(row) for row in rows)
    padded = torch.full((len(rows), longest), value, dtype=torch.long)
    for index, row in enumerate(rows):
        if side == "left":
            padded[index, longest - len(row) :] = torch.tensor(row)
        else:
            padded[index, : len(row)] = torch.tensor(row)
    return padded
