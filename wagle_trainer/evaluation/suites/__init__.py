"""Suites by name, one file each. Every module of this folder is imported, so a new file is all it takes.

A suite's file has its table of metrics, its `Suite` and its measurement, `evaluate_<suite>`. What needs torch is imported
inside functions, so that suites can be listed without it.
"""

from wagle_trainer.evaluation.suites.suite import (
    Suite,
    describe_suites,
    get_suite,
    list_suites,
    readings,
    register_suite,
)
from wagle_trainer.evaluation.suites.suite_metric import Better, SuiteMetric, mean_of
from wagle_trainer.utils.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "Better",
    "Suite",
    "SuiteMetric",
    "describe_suites",
    "get_suite",
    "list_suites",
    "mean_of",
    "readings",
    "register_suite",
]
