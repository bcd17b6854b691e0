"""Unlearning as an adapter: a small file that can be applied, combined, switched off, checked and shared."""

from wagle_trainer.adapters.adapter import AdapterInfo, AdapterMismatchError, SparseAdapter
from wagle_trainer.adapters.composition import AdapterOverlapError, compose
from wagle_trainer.adapters.operations import diff, merge, verify
from wagle_trainer.adapters.sparse import SparseValues

__all__ = [
    "AdapterInfo",
    "AdapterMismatchError",
    "AdapterOverlapError",
    "SparseAdapter",
    "SparseValues",
    "compose",
    "diff",
    "merge",
    "verify",
]
