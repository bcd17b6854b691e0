"""Adapters in place of models in a trainer's folders: `AdapterCheckpoints`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wagle_trainer.adapters.adapter import (
    CONFIG_NAME,
    AdapterInfo,
    AdapterMismatchError,
    SparseAdapter,
    base_digests,
    is_adapter,
    touched,
)
from wagle_trainer.adapters.operations import write
from wagle_trainer.engines.engine import current_engine
from wagle_trainer.masking import WeightMask

BESIDE_MODEL = "adapter"  # subfolder; transformers would put an adapter beside a model onto it once more


class AdapterCheckpoints:
    """Saves what a masked run has changed so far, and puts a checkpoint's changes back into the base model.

    The base model's digests are taken once, before the first step; its weights are not copied.
    """

    def __init__(self) -> None:
        self.digests: dict[str, str] | None = None
        self.mask: WeightMask | None = None

    def begin(self, model: nn.Module, mask: WeightMask) -> None:
        """Remember the base model, and the mask that it is trained with. Called when training begins.

        Raises:
            AdapterMismatchError: the model has been trained with another mask before.
        """
        if self.mask is not None and mask.digest != self.mask.digest:
            raise AdapterMismatchError(
                "This model has been trained with another mask already, so an adapter would not hold all that has changed. "
                "Make a new trainer with the base model."
            )
        self.mask = mask
        if self.digests is None:
            self.digests = base_digests(model, mask)
        elif self.digests.keys() != set(touched(mask)):
            raise AdapterMismatchError("The mask and the adapter in the checkpoint are not of the same run.")

    def save(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        training: dict[str, Any],
        masters: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the adapter.

        Args:
            training: how the values were trained.
            masters: the float32 values whose rounding the model holds, to be saved in their place.

        Raises:
            ValueError: training has not begun.
        """
        if self.mask is None or self.digests is None:
            raise ValueError(
                "There is nothing to save yet: save_adapter=True saves what training has changed. Call train() first, or "
                "model.save_pretrained(...) for the base model."
            )
        info = AdapterInfo.of(model, self.mask.describe(), training)
        SparseAdapter.from_mask(model, self.mask, self.digests, info, masters).save_pretrained(folder)

    @torch.no_grad()
    def load(self, folder: str | os.PathLike[str], model: nn.Module) -> None:
        """Put a checkpoint's values into the model, which is the base model, or has been trained with the same mask.

        Raises:
            AdapterMismatchError: it is neither.
        """
        adapter = SparseAdapter.from_pretrained(folder)
        if self.digests is None:
            adapter.check(model)
        elif adapter.base_digests != self.digests or (
            self.mask is not None and any(not torch.equal(adapter[n].packed, self.mask.packed(n)) for n in adapter)
        ):
            raise AdapterMismatchError(
                f"The adapter in {os.fspath(folder)} is of another base model or mask than this run's. Make a new trainer "
                "with its base model."
            )
        write(adapter, model)
        self.digests = adapter.base_digests


def check_adapter_can_be_saved(has_mask: bool) -> None:
    """Raise ValueError if a run cannot save an adapter: it has no mask, or its engine shards the weights."""
    if not has_mask:
        raise ValueError(
            "save_adapter=True saves the weights that a mask selects, and attribution=None trains all of them. Save the "
            "model, and make an adapter of what has changed by wagle_trainer.adapters.diff(base, tuned)."
        )
    if not (engine := current_engine()).holds_full_weights:
        raise ValueError(
            f"save_adapter=True does not work with {engine.name}, which shards the weights. Train on one process or "
            "with data parallelism; or save the model, and make an adapter by wagle_trainer.adapters.diff(base, tuned)."
        )


def adapter_in(folder: str | os.PathLike[str]) -> Path | None:
    """Where the adapter is that a trainer saved into `folder`; None if there is none."""
    candidates = (Path(folder), Path(folder) / BESIDE_MODEL)
    return next((path for path in candidates if is_adapter(path / CONFIG_NAME)), None)
