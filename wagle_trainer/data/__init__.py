"""Forget and retain sets: TOFU, MUSE, WMDP, the bundled fictional people; how questions and answers become tokens."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "QAFormat": "formatting",
    "REFUSALS": "refusals",
    "fictional_split": "fictional",
    "fictional_tokenizer": "fictional",
    "load_muse": "muse",
    "load_muse_evaluation": "muse",
    "load_tofu": "tofu",
    "load_tofu_evaluation": "tofu",
    "load_wmdp": "wmdp",
    "refusal_for": "refusals",
    "retain_split_for": "tofu",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
