"""Batches of similar length, for passes whose result does not depend on the order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from wagle_trainer.data.pairing import Collator


class LengthSortedBatches:
    """Batches of a tokenized set, longest first, so that little is padded and memory runs out at once or never.

    Can be iterated again and again. Several processes take turns: process r of n gets batches r, r + n, ...

    Args:
        dataset: has `input_ids` and `labels`.
        batch_size: examples per batch.
        collator: pads a list of examples.
        rows: only these rows of the set.
        process, num_processes: which share of the batches.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        collator: Collator,
        *,
        rows: Iterable[int] | None = None,
        process: int = 0,
        num_processes: int = 1,
    ):
        self.dataset, self.collator = dataset, collator
        lengths = [len(ids) for ids in dataset["input_ids"]]
        order = sorted(range(len(lengths)) if rows is None else rows, key=lambda row: -lengths[row])
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self.rows: Sequence[list[int]] = batches[process::num_processes]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        for rows in self.rows:
            examples = [self.dataset[row] for row in rows]
            yield self.collator([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in examples])


def make_collator(pad_token_id: int) -> Collator:
    """TRL's collator for tokenized language-modelling examples: pads on the right, labels with -100."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=pad_token_id)
