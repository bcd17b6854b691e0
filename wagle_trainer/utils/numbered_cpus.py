"""Checkpoints on a CPU that has a number: several processes without a GPU compute on `cpu:0`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_AFTER_TORCHS_OWN = 100


@cache
def read_numbered_cpus() -> None:
    """Let `torch.load` take `cpu:0` as a `map_location`, once per process.

    Older Transformers (5.6, for one) hand it the device of accelerate there when they resume on several processes;
    torch knows the name `cpu` only, and says that it doesn't know how to restore the data location.
    """
    torch.serialization.register_package(_AFTER_TORCHS_OWN, lambda _: None, _on_a_numbered_cpu)


def _on_a_numbered_cpu(storage: Any, location: str) -> Any:
    """The storage, as it was read; None for other devices, which torch itself puts in place."""
    return storage if location.startswith("cpu:") else None
