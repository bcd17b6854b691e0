"""Unlearning objectives: forget losses (`forget/`), retain losses, and what they need (`objective.py`)."""

from wagle_trainer.losses import forget  # noqa: F401  (registers every loss)
from wagle_trainer.losses.unlearning_loss import (
    Signals,
    UnlearningLoss,
    describe_losses,
    get_loss,
    list_losses,
    register_loss,
)

__all__ = ["Signals", "UnlearningLoss", "describe_losses", "get_loss", "list_losses", "register_loss"]
