"""Names of a package that load on first use: `lazy_names`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` (PEP 562) for a package whose names come from modules not yet imported.

    Args:
        package: the package's `__name__`.
        homes: name -> module of the package that defines it, relative to the package.

    Example:
        >>> __getattr__, __dir__ = lazy_names("wagle_trainer.data", {"load_tofu": "tofu"})
        >>> __getattr__("load_tofu").__module__
        'wagle_trainer.data.tofu'
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
