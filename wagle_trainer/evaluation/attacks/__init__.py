"""Attacks that try to recover forgotten knowledge, one file each.

Every module of this folder is imported, so a new file is all it takes.
"""

from wagle_trainer.evaluation.attacks.attack import (
    NothingForgottenError,
    Point,
    Target,
    describe_attacks,
    get_attack,
    list_attacks,
    recovery_rate,
    register_attack,
)
from wagle_trainer.evaluation.attacks.attack_results import read_attack
from wagle_trainer.evaluation.attacks.knowledge import forget_knowledge
from wagle_trainer.evaluation.attacks.runner import run_attacks
from wagle_trainer.utils.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "NothingForgottenError",
    "Point",
    "Target",
    "describe_attacks",
    "forget_knowledge",
    "get_attack",
    "list_attacks",
    "read_attack",
    "recovery_rate",
    "register_attack",
    "run_attacks",
]
