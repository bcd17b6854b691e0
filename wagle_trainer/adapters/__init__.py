"""Unlearning as an adapter: a small file that can be applied, combined, switched off, checked and shared.

Importing this package makes the PEFT method "WAGLE" known to PEFT.
"""

from wagle_trainer.adapters.adapter import AdapterInfo, AdapterMismatchError, SparseAdapter
from wagle_trainer.adapters.composition import AdapterOverlapError, compose
from wagle_trainer.adapters.config import WagleAdapterConfig
from wagle_trainer.adapters.export import export_supertuning
from wagle_trainer.adapters.model import WagleModel
from wagle_trainer.adapters.operations import diff, merge, verify
from wagle_trainer.adapters.registration import register
from wagle_trainer.adapters.sparse import SparseValues

__all__ = [
    "AdapterInfo",
    "AdapterMismatchError",
    "AdapterOverlapError",
    "SparseAdapter",
    "SparseValues",
    "WagleAdapterConfig",
    "WagleModel",
    "compose",
    "diff",
    "export_supertuning",
    "merge",
    "verify",
]

register(WagleAdapterConfig, WagleModel)
