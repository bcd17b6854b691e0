"""Unlearning objectives, one file each. Every module of this folder is imported, so a new file is all it takes."""

from wagle_trainer.losses.base import Signals, UnlearningLoss, describe_losses, get_loss, list_losses, register_loss
from wagle_trainer.registry import import_all

import_all(__name__, __path__)

__all__ = ["Signals", "UnlearningLoss", "describe_losses", "get_loss", "list_losses", "register_loss"]
