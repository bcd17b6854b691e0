"""Contexts that leave a model as they found it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def _kept_modes(model: nn.Module) -> Iterator[None]:
    """Put every module back into train or eval mode on exit, one by one: frozen parts may have been in eval mode."""
    found = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in found.items():
            module.training = training


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's mode is restored on exit.

    `no_grad` rather than `inference_mode`: buffers that a model makes on first use (rotary tables) would stay
    inference tensors, and a later training step on them would fail.
    """
    with _kept_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def unchanged(model: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Begin without gradients; restore modes, `requires_grad` and gradients on exit.

    Args:
        model: the model to protect.
        weights: restore the weights, too, bitwise identical. A second copy of them is held meanwhile.
    """
    found = [(p, p.requires_grad, p.grad, p.detach().clone() if weights else None) for p in model.parameters()]
    with _kept_modes(model):
        for parameter, *_ in found:
            parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, requires_grad, grad, value in found:
                    if value is not None:
                        parameter.copy_(value)
                    parameter.requires_grad_(requires_grad)
                    parameter.grad = grad


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch on the CPU and the current GPU on exit."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set every dropout probability of a model to zero, and restore them on exit.

    Dropout modules hold theirs in `p`; attention layers of Transformers hold theirs in attributes such as
    `attention_dropout`.
    """
    found: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            is_probability = name == "p" if isinstance(module, nn.modules.dropout._DropoutNd) else "drop" in name
            if is_probability and isinstance(value, float) and value > 0:
                found.append((module, name, value))
    try:
        for module, name, _ in found:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)
