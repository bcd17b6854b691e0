"""Suites by name, one file each. Every module of this folder is imported, so a new file is all it takes.

A file here says what a suite is called, where its data are and how its numbers read. The measuring itself is in the
file of the same name one folder up, loaded on first use, so that suites can be listed without torch.
"""

from wagle_trainer.evaluation.suites.suite import (
    Better,
    Suite,
    describe_suites,
    get_suite,
    list_suites,
    register_suite,
)
from wagle_trainer.utils.registry import import_all

import_all(__name__, __path__)

__all__ = ["Better", "Suite", "describe_suites", "get_suite", "list_suites", "register_suite"]
