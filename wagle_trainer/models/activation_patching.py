"""A forward pass of one model with the hidden states of another in one layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wagle_trainer.models.architecture import decoder_layers
from wagle_trainer.models.log_probs import label_mask, token_log_probs


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a model.

    Raises:
        ValueError: they are not found.
    """
    layers = decoder_layers(model)
    if layers is None:
        raise ValueError(f"The decoder layers of {type(model).__name__} are not found: its states cannot be patched.")
    return layers


def predicting_positions(labels: Tensor) -> Tensor:
    """Where the next token has a label: bool (batch, length)."""
    return F.pad(label_mask(labels), (0, 1))


@torch.no_grad()
def states_by_layer(model: nn.Module, batch: Mapping[str, Tensor], positions: Tensor) -> list[Tensor]:
    """Hidden states behind each decoder layer, from one forward pass.

    Args:
        model: a causal language model.
        batch: `input_ids`, `labels` and `attention_mask`, (batch, length) each, on the model's device.
        positions: whose states are kept, bool (batch, length).

    Returns:
        For each layer (number of positions, hidden size).
    """
    found: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output: found.append(_states(output)[positions]))
        for layer in layers_of(model)
    ]
    try:
        token_log_probs(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def patched(layer: nn.Module, positions: Tensor, states: Tensor) -> Iterator[None]:
    """Let a layer return other hidden states at some positions.

    Args:
        layer: a decoder layer.
        positions: which, bool (batch, length).
        states: what it returns there, (number of positions, hidden size).
    """

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        new = _states(output).clone()
        new[positions] = states.to(new)
        return new if isinstance(output, Tensor) else type(output)([new, *output[1:]])

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def patched_log_probs(model: nn.Module, batch: Mapping[str, Tensor], states: list[Tensor] | None = None) -> Tensor:
    """Mean log-probability of each example's labels with another model's states, one layer after the other.

    The states are those at the positions that predict a label; all others stay the model's own.

    Args:
        model: a causal language model.
        batch: `input_ids`, `labels` (-100 = not predicted) and `attention_mask`, (batch, length) each.
        states: what `states_by_layer` gave for the other model; None for the model as it is.

    Returns:
        (layers, batch) in nats; (1, batch) without states.
    """
    if states is None:
        return token_log_probs(model, batch).mean()[None]
    positions, means = predicting_positions(batch["labels"]), []
    for layer, own in zip(layers_of(model), states, strict=True):
        with patched(layer, positions, own):
            means.append(token_log_probs(model, batch).mean())
    return torch.stack(means)


def _states(output: Any) -> Tensor:
    states = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(states, Tensor) or states.dim() != 3:
        raise ValueError("A decoder layer returns no hidden states (batch, length, size): they cannot be patched.")
    return states
