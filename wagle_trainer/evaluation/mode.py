"""Looking at a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
