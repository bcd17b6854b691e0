"""From a file of what to forget to a verdict: plan, neighbours, search, attacks, report.

Names load on first use, so that the command line can show its help without torch.
"""

from wagle_trainer.utils.lazy_names import lazy_names

_HOMES = {
    "ForgetSettings": "settings",
    "Neighbours": "neighbours",
    "Plan": "planning",
    "TooFewNeighboursError": "neighbours",
    "Verdict": "verdict",
    "forget": "run",
    "make_neighbours": "neighbours",
    "plan": "run",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
