"""`BatchLayout`: what the host knows of a batch whose tensors are on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

IGNORE_INDEX = -100


@dataclass(frozen=True)
class BatchLayout:
    """Numbers that decide the shapes of a training step, so that no step waits for the device to learn them.

    A collator puts it into the batch under "layout", beside the tensors; it stays on the host.

    Attributes:
        labelled: positions along the length that some example has a label after, ascending.
        targets: number of target tokens.
        pads_left: some example begins with padding.
        rows: rows of the data set.
    """

    labelled: tuple[int, ...]
    targets: int
    pads_left: bool
    rows: tuple[int, ...]

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], rows: Sequence[int]) -> BatchLayout:
        """The layout of a batch that is still on the host."""
        mask, real = label_mask(batch["labels"], batch.get("attention_mask")), batch.get("attention_mask")
        labelled = tuple(mask.any(0).nonzero().squeeze(-1).tolist())
        return cls(labelled, int(mask.sum()), real is not None and not bool(real[:, 0].all()), tuple(rows))

    @classmethod
    def joined(cls, layouts: Sequence[BatchLayout]) -> BatchLayout:
        """The layout of several batches below each other, every token in its column."""
        labelled = tuple(sorted({position for layout in layouts for position in layout.labelled}))
        rows = tuple(row for layout in layouts for row in layout.rows)
        return cls(labelled, sum(one.targets for one in layouts), any(one.pads_left for one in layouts), rows)


def label_mask(labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions whose *next* token carries a label. `labels` (batch, length) -> bool (batch, length - 1).

    No token precedes the first one of an example, so its label does not count, whichever side the padding is on.
    """
    mask = labels[:, 1:] != IGNORE_INDEX
    return mask if attention_mask is None else mask & attention_mask[:, :-1].bool()
