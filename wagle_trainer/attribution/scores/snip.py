"""SNIP: what removing a weight would do."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("snip")
def snip(weight: Tensor, forget_grad: Tensor) -> Tensor:
    """|theta * g_f|: first-order change of the forget loss when the weight is removed (arXiv 1810.02340).

    It is what WAGLE's score becomes for gamma -> infinity."""
    return (weight * forget_grad).abs_()
