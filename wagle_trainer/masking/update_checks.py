"""What cannot keep frozen weights frozen, refused before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from wagle_trainer.masking.mask import WeightMask

# Optimizers that update weights within the backward pass, where no step hook sees them. By class name, since
# Transformers and others make them; `LayerWiseDummyOptimizer` is Transformers' stand-in for layer-wise GaLore and APOLLO.
STEP_IN_BACKWARD = {"Lomo", "AdaLomo", "LayerWiseDummyOptimizer"}


def check_selects_weights(mask: WeightMask) -> None:
    """Raise ValueError for a mask without selected weights."""
    if mask.num_selected == 0:
        raise ValueError(
            f"The mask selects none of its {mask.num_weights:,} weights, so training would change nothing: choose a "
            "higher density, or another mask."
        )


def check_forward_changes_no_weight(model: nn.Module) -> None:
    """Raise ValueError for modules whose forward pass or gradients a mask cannot control.

    Raises:
        ValueError: an embedding rescales its rows in the forward pass, or has sparse gradients.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            if module.max_norm is not None:
                raise ValueError(
                    f"The embedding {name!r} rescales its weights in each forward pass (max_norm={module.max_norm}), "
                    "which no mask can prevent: set its max_norm to None."
                )
            if module.sparse:
                raise ValueError(
                    f"The embedding {name!r} has sparse gradients, which cannot be masked: set sparse=False."
                )


def check_steps_outside_backward(model: nn.Module, optimizer: Any) -> None:
    """Raise ValueError for optimizers that update weights within the backward pass.

    Raises:
        ValueError: LOMO, AdaLOMO, a layer-wise optimizer, or `torch.distributed.optim`'s optimizers in backward.
    """
    in_backward = any(hasattr(parameter, "_in_backward_optimizers") for parameter in model.parameters())
    name = type(optimizer).__name__
    if in_backward or name in STEP_IN_BACKWARD:
        raise ValueError(
            f"The optimizer ({name}) updates weights within the backward pass, before their gradients can be masked. "
            "Use one that updates them in step(), such as optim='adamw_torch_fused'; with a mask of low density, "
            "its memory is small."
        )
