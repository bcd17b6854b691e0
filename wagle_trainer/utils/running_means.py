"""Means over the examples of many batches on all processes: `RunningMeans`."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class RunningMeans:
    """Collect one value per example, batch by batch, and return the means since the last call."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}  # total and number of examples

    def __bool__(self) -> bool:
        return bool(self._totals)

    def add(self, name: str, per_example: Tensor) -> None:
        """Add the values of one batch, (batch,). Does not wait for the GPU."""
        total = per_example.detach().sum()
        both = torch.stack([total, torch.full_like(total, len(per_example))])
        self._totals[name] = self._totals[name] + both if name in self._totals else both

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes, which must all call this, and begin again."""
        totals, self._totals = self._totals, {}
        sums = {name: both.tolist() for name, both in accelerator.reduce(totals, "sum").items()}
        return {name: total / count for name, (total, count) in sums.items()}
