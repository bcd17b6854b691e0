"""Comparisons of objectives, scores, densities and learning rates over seeds, each run once, under one rule.

Names load on first use.
"""

from wagle_trainer.utils.lazy_names import lazy_names

_HOMES = {
    "ComparisonArguments": "arguments",
    "Pick": "learning_rate_rule",
    "Runs": "runs",
    "Variant": "runs",
    "forget_goal": "learning_rate_rule",
    "pick": "learning_rate_rule",
    "run_comparison": "run_comparison",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
