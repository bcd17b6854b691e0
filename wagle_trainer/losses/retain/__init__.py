"""Retain losses, one file each. Every module of this folder is imported, so a new file is enough."""

from wagle_trainer.utils.registry import import_all

import_all(__name__, __path__)
