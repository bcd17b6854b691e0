"""Weight times input activation."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("wanda")
def wanda(weight: Tensor, forget_activation: Tensor | None) -> Tensor | None:
    """|theta| times the norm of its input over the forget set (arXiv 2306.11695, eq. 1); the paper's scope is "row".

    Only matrices have inputs: embeddings, norms and biases are frozen."""
    return None if forget_activation is None else weight.float().abs().mul_(forget_activation)
