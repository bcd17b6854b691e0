"""Attribution scores, one file each. Every module of this folder is imported, so a new file is all it takes."""

from wagle_trainer.attribution.scores.score import (
    ARGUMENTS,
    SETS,
    Score,
    arguments_of,
    describe_scores,
    get_score,
    list_scores,
    name_of,
    needed_statistics,
    register_score,
    with_options,
)
from wagle_trainer.utils.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "ARGUMENTS",
    "SETS",
    "Score",
    "arguments_of",
    "describe_scores",
    "get_score",
    "list_scores",
    "name_of",
    "needed_statistics",
    "register_score",
    "with_options",
]
