"""Where infinity or NaN comes from: the first weight or batch that is not finite, and how to say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wagle_trainer.engines.sharding import local_part


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN; of a sharded tensor, those of this process. Takes no memory of its size."""
    values = local_part(tensor.detach())
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def first_parameter_not_finite(model: nn.Module) -> str | None:
    """Name of the first parameter with an infinite or NaN value; None if there is none."""
    return next((name for name, parameter in model.named_parameters() if not is_finite(parameter)), None)


def first_batch_not_finite(
    batches: Iterable[Mapping[str, Any]], values: Callable[[Mapping[str, Any]], Iterable[Tensor]]
) -> int | None:
    """Index of the first batch for which `values(batch)` are not all finite; None if there is none."""
    return next((i for i, batch in enumerate(batches) if not all(map(is_finite, values(batch)))), None)


def cause_of_not_finite(model: nn.Module) -> str:
    """Why a loss of `model` is not finite, as half a sentence: its weights, or the batch."""
    name = first_parameter_not_finite(model)
    if name is not None:
        return f"the weights of {name!r} are not finite"
    return "all weights are finite, so the model overflows on this batch"
