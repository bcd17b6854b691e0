"""Looking at a model without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in train or eval mode as it was before.

    `no_grad` rather than `inference_mode`: buffers that a model makes on first use (rotary tables) would stay
    inference tensors, and a later training step on them would fail.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in training.items():  # one by one: frozen parts may have been in eval mode
            module.training = was_training


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Random numbers drawn inside (Python's, NumPy's, torch's on the CPU and the current GPU) change none drawn later."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Whatever is done to the weights inside is undone: values bit for bit, gradients, what requires one, the mode.

    It holds a second copy of the weights meanwhile.
    """
    before = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in model.parameters()]
    training = {module: module.training for module in model.modules()}
    for parameter, *_ in before:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, grad, requires_grad in before:
                parameter.copy_(value)
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
        for module, was_training in training.items():
            module.training = was_training
