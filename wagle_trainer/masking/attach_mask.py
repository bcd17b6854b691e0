"""From a mask, a model and its optimizer to the updates that keep to the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers.utils import logging

from wagle_trainer.masking.compact_choice import TRAINING_DENSITY, obstacle_to_compact_training
from wagle_trainer.masking.compact_updates import CompactUpdates
from wagle_trainer.masking.flattened_updates import FSDP1MaskedUpdates, ZeroMaskedUpdates, zero_optimizer
from wagle_trainer.masking.mask import WeightMask
from wagle_trainer.masking.masked_updates import MaskedUpdates, innermost

logger = logging.get_logger(__name__)


def attach_mask(
    model: nn.Module,
    mask: WeightMask,
    optimizer: Any,
    *,
    skip_frozen: bool = False,
    compact: bool | None = False,
    data_parallel: Any = None,
    saves_shards: bool = False,
    saved_state: Path | None = None,
) -> MaskedUpdates | CompactUpdates:
    """Attach a mask in the way that the engine, the optimizer and the density allow.

    Args:
        model: the unwrapped model, as `MaskedUpdates` takes it.
        compact: train compact masters; None does so up to density 0.1, where it is possible.
        skip_frozen, data_parallel, saved_state: see `CompactUpdates`.
        saves_shards: see `obstacle_to_compact_training`.

    Raises:
        ValueError: `compact` is True, but not possible; or as `MaskedUpdates`.
    """
    obstacle = obstacle_to_compact_training(
        model, innermost(optimizer), data_parallel=data_parallel, saves_shards=saves_shards
    )
    if compact and obstacle is not None:
        raise ValueError(
            f"compact_training=True is not possible: {obstacle}. Leave it out to train with dense gradients."
        )
    if compact is None:
        compact = mask.density <= TRAINING_DENSITY and obstacle is None
        if not compact:
            logger.info(
                "Training keeps dense gradients, and not only those of the selected weights: "
                + (obstacle or f"the mask selects more than {TRAINING_DENSITY:.0%} of the weights")
                + "."
            )
    if compact:
        if mask.density > 0.5:
            logger.warning(
                f"At density {mask.density:.2g}, compact training takes more memory than dense gradients would: leave "
                "compact_training out."
            )
        return CompactUpdates(
            model, mask, optimizer, data_parallel=data_parallel, skip_frozen=skip_frozen, saved_state=saved_state
        )
    if zero_optimizer(optimizer) is not None:
        return ZeroMaskedUpdates(model, mask, optimizer)
    if isinstance(model, FullyShardedDataParallel):
        return FSDP1MaskedUpdates(model, mask, optimizer)
    return MaskedUpdates(model, mask, optimizer, skip_frozen=skip_frozen)
