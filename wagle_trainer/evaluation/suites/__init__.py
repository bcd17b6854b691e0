"""Suites by name, one file each. Every module of this folder is imported, so a new file is all it takes.

A file here says what a suite is called, where its data are and how its numbers read. The measuring itself is in the
file of the same name one folder up, loaded on first use, so that suites can be listed without torch.
"""

import importlib
import pkgutil

from wagle_trainer.evaluation.suites.base import Suite, describe_suites, get_suite, list_suites, register_suite

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Suite", "describe_suites", "get_suite", "list_suites", "register_suite"]
