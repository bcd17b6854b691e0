"""Which parameters of a model are scored, and which models cannot be."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from wagle_trainer.attribution.config import as_list
from wagle_trainer.engines.sharding import named_parameters
from wagle_trainer.models.architecture import is_quantised


def check_not_quantised(model: nn.Module) -> None:
    """Raise ValueError for a model with quantised weights, as Transformers loads them."""
    if is_quantised(model):
        raise ValueError(
            "The base weights are quantised: they have no gradients and cannot change one by one. Load the model "
            "unquantised, or train a LoRA adapter without a weight mask (attribution=None)."
        )


def check_maskable(model: nn.Module) -> None:
    """Raise ValueError for models whose weights cannot be scored: quantised ones, and freshly made LoRA adapters."""
    check_not_quantised(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name and not bool(torch.any(parameter)):
            raise ValueError(
                f"{name!r} is zero, as at every LoRA's start: then the gradient of each lora_A is exactly zero, and "
                "scores that use it rank nothing but rounding. Score the base weights without an adapter, or train "
                'the adapter without a mask (attribution=None); with LoraConfig(target_modules="wagle"), the score '
                "of the base weights chooses the modules to adapt."
            )


def select_parameters(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, a tied one once; filtered by regular expressions searched for in the names.

    Raises:
        ValueError: a pattern is not a regular expression or matches no trainable parameter, or nothing is left.
    """
    include, exclude = as_list(include), as_list(exclude)
    parameters = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    if not parameters:
        raise ValueError("The model has no trainable parameter to score.")
    for pattern in (*(include or ()), *(exclude or ())):
        try:
            found = any(re.search(pattern, name) for name in parameters)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from error
        if not found:
            raise ValueError(
                f"The pattern {pattern!r} matches no trainable parameter. Names look like "
                + ", ".join(map(repr, [*list(parameters)[:2], list(parameters)[-1]]))
                + "."
            )
    chosen = {
        name: parameter
        for name, parameter in parameters.items()
        if (not include or any(re.search(pattern, name) for pattern in include))
        and not any(re.search(pattern, name) for pattern in exclude or ())
    }
    if not chosen:
        raise ValueError(f"include={include} and exclude={exclude} together leave no parameter to score.")
    return chosen
