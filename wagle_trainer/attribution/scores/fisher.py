"""Fisher information of the forget set over that of the retain set."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("fisher")
def fisher(forget_square: Tensor, retain_square: Tensor, eps: float = 1e-20) -> Tensor:
    """F_f / (F_r + eps), diagonals of the empirical Fisher matrices: selective synaptic dampening (arXiv 2308.07707).

    F is the mean over examples of the squared gradient of each. The paper selects where F_f > alpha * F of all training
    data; here the retain set stands for those, and the density for alpha."""
    return forget_square.div(retain_square.add(eps))
