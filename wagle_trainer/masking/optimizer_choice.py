"""Which optimizer a masked run gets."""

from __future__ import annotations

from wagle_trainer.config import WagleConfig
from wagle_trainer.engines.engine import current_engine
from wagle_trainer.masking import WeightMask


def use_compact_optimizer(args: WagleConfig, mask: WeightMask | None) -> bool:
    """Whether AdamW keeps its moments for the selected weights only, as `args.compact_optimizer` says, or, if it is None,
    where that saves memory.

    Args:
        mask: the mask, if it is known before training.

    Raises:
        ValueError: it is asked for, but not possible with `args.optim` or on this engine.
    """
    if args.compact_optimizer is False:
        return False
    known_optim = args.optim in ("adamw_torch", "adamw_torch_fused")
    engine = current_engine()
    if args.compact_optimizer is None:
        density = args.density if mask is None else mask.density
        # A density chosen by rule is not known yet, when the optimizer is made.
        return isinstance(density, float) and density <= 0.5 and known_optim and engine.supports_compact_optimizer
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
