"""What was forgotten, what it cost, and whether a control does as well: figures, statistics, and one page with both.

Names load on first use.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Comparison": "statistics",
    "Interval": "statistics",
    "compare": "statistics",
    "example_interval": "bootstrap",
    "holm": "statistics",
    "paired_p_value": "statistics",
    "t_interval": "statistics",
    "write_report": "report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
