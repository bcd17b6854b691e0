"""The size of the weight: a control."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("magnitude")
def magnitude(weight: Tensor) -> Tensor:
    """|theta|: looks at no data; a control."""
    return weight.abs()
