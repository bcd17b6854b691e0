"""Attribution: which weights matter for forgetting. Gradients -> scores -> selection."""

from wagle_trainer.attribution.attribute import attribute
from wagle_trainer.attribution.config import AttributionConfig
from wagle_trainer.attribution.scores import describe_scores, get_score, list_scores, register_score
from wagle_trainer.attribution.starting_rate import starting_rate

__all__ = [
    "AttributionConfig",
    "attribute",
    "describe_scores",
    "get_score",
    "list_scores",
    "register_score",
    "starting_rate",
]
