"""How much of masked training is compact: everything, AdamW's moments, or nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim import Optimizer

from wagle_trainer.engines.engine import current_engine
from wagle_trainer.masking.compact_adamw import CompactAdamW
from wagle_trainer.masking.mask import WeightMask

TRAINING_DENSITY = 0.1  # up to here all of training is compact by default
MOMENTS_DENSITY = 0.5  # up to here AdamW's moments are; more of them would take more memory than they save
# Packages whose optimizers update each weight by itself, and those of their optimizers that do not.
ELEMENTWISE = ("torch.optim.", "bitsandbytes.", "torchao.", "schedulefree.")
NOT_ELEMENTWISE = {
    "Adafactor",
    "Muon",
    "LBFGS",
    "SparseAdam",
    "LAMB",
    "LAMB8bit",
    "LAMB32bit",
    "LARS",
    "LARS8bit",
    "LARS32bit",
}


def use_compact_optimizer(args: Any, mask: WeightMask | None) -> bool:
    """Whether the optimizer is `CompactAdamW`, whose gradients are dense and whose moments are compact.

    Args:
        args: with `optim`, `density`, `compact_optimizer` and `compact_training`, as `WagleConfig` has them.
        mask: the mask, if it is known before training.

    Raises:
        ValueError: `compact_optimizer` is True, but not possible with `args.optim` or on this engine, or excluded by
            `compact_training`.
    """
    engine = current_engine()
    density = args.density if mask is None else mask.density  # a rule, as long as the density is not known
    known_optim = args.optim in ("adamw_torch", "adamw_torch_fused")
    if args.compact_optimizer and args.compact_training:
        raise ValueError(
            "compact_training=True has compact moments with any optimizer, so compact_optimizer=True excludes it: leave "
            "one of them out."
        )
    if args.compact_optimizer is False or args.compact_training:
        return False
    if args.compact_optimizer is None:
        all_compact = args.compact_training is None and isinstance(density, float) and density <= TRAINING_DENSITY
        few = isinstance(density, float) and density <= MOMENTS_DENSITY
        return few and not all_compact and known_optim and engine.supports_compact_optimizer
    if not known_optim:
        raise ValueError(
            f"compact_optimizer=True needs optim='adamw_torch_fused' or 'adamw_torch', not {args.optim.value!r}."
        )
    if not engine.supports_compact_optimizer:
        raise ValueError(
            f"compact_optimizer=True does not work with {engine.name}, which shards the optimizer's state itself: "
            "leave it out, or train on one process or with data parallelism."
        )
    return True


def obstacle_to_compact_training(
    model: nn.Module, optimizer: Optimizer, *, data_parallel: Any = None, saves_shards: bool = False
) -> str | None:
    """Why `CompactUpdates` cannot train this model, as the end of a sentence; None if they can.

    Args:
        optimizer: the innermost one.
        data_parallel: the `DistributedDataParallel` around the model, if it is known.
        saves_shards: checkpoints hold the state of sharded weights (see `compact_shards`), as WagleTrainer's do.
    """
    engine = current_engine()
    kind = type(optimizer)
    if not engine.supports_compact_training:
        return f"{engine.name} shards gradients and the optimizer's state itself"
    if not engine.holds_full_weights:
        if not saves_shards:
            return "only WagleTrainer can save the compact state of sharded weights"
        if AcceleratorState().mixed_precision == "fp16":
            return f"float16 scales gradients, which {engine.name} has not been tried with; use bfloat16"
    elif dist.is_initialized() and dist.get_world_size() > 1 and data_parallel is None:
        return "only WagleTrainer can average compact gradients over several processes"
    if kind is CompactAdamW:
        return "the optimizer is CompactAdamW, which reads dense gradients"
    if not f"{kind.__module__}.".startswith(ELEMENTWISE) or kind.__name__ in NOT_ELEMENTWISE:
        return f"{kind.__name__} may update a weight by others of its tensor, which compact training does not show it"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.is_contiguous():
            return f"{name!r} is not contiguous in memory"
        if parameter.requires_grad and not torch.is_floating_point(parameter):
            return f"{name!r} is of format {parameter.dtype}"
    return None
