"""The load-balancing loss of mixtures of experts: `router_losses`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from wagle_trainer.models.architecture import text_config, unwrap


@contextmanager
def router_losses(model: nn.Module, required: bool = True) -> Iterator[list[Tensor]]:
    """Collect the load-balancing loss of every forward pass that is run inside, as scalars with gradients.

    The configuration requests router logits meanwhile, and is restored on exit: with the request, generation in batches
    fails for some models, and a saved model would carry it.

    Args:
        model: a mixture of experts, possibly wrapped.
        required: refuse a model that does not return the loss; else there is nothing to collect from it.

    Raises:
        ValueError: the model has no experts, or does not return the loss.
    """
    config, collected = text_config(model), list[Tensor]()
    if not hasattr(config, "output_router_logits"):
        raise ValueError(
            f"router_aux_loss_coef is set, but {type(unwrap(model)).__name__} is no mixture of experts that returns its "
            "router logits: leave it out."
        )

    def collect(module: nn.Module, inputs: Any, output: Any) -> None:
        loss = getattr(output, "aux_loss", None)
        if isinstance(loss, Tensor):
            collected.append(loss)
        elif required:
            raise ValueError(
                f"router_aux_loss_coef is set, but {type(module).__name__} returns no load-balancing loss: leave it out."
            )

    found, config.output_router_logits = config.output_router_logits, True
    handle = unwrap(model).register_forward_hook(collect)
    try:
        yield collected
    finally:
        handle.remove()
        config.output_router_logits = found
