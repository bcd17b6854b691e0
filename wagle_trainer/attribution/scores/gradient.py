"""The forget gradient alone."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("gradient")
def gradient(forget_grad: Tensor) -> Tensor:
    """|g_f|: the forget gradient alone, as in SalUn (arXiv 2310.12508, eq. 3)."""
    return forget_grad.abs()
