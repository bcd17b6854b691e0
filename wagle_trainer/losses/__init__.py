"""Unlearning objectives: forget losses (`forget/`), retain losses (`retain/`), and what they need (`needs.py`)."""

from wagle_trainer.losses import forget, retain  # noqa: F401  (registers every loss)
from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.retain_loss import (
    RetainLoss,
    describe_retain_losses,
    get_retain_loss,
    list_retain_losses,
    register_retain_loss,
)
from wagle_trainer.losses.unlearning_loss import (
    UnlearningLoss,
    describe_losses,
    get_loss,
    list_losses,
    register_loss,
)

__all__ = [
    "LossInputs",
    "RetainLoss",
    "UnlearningLoss",
    "describe_losses",
    "describe_retain_losses",
    "get_loss",
    "get_retain_loss",
    "list_losses",
    "list_retain_losses",
    "register_loss",
    "register_retain_loss",
]
