"""What was forgotten, what it cost, and whether a control does as well: figures, statistics, and one page with both.

Names load on first use.
"""

from wagle_trainer.utils.lazy_names import lazy_names

_HOMES = {
    "Comparison": "statistics",
    "Interval": "statistics",
    "compare": "statistics",
    "example_interval": "intervals",
    "holm": "statistics",
    "paired_p_value": "statistics",
    "t_interval": "statistics",
    "write_report": "report",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
