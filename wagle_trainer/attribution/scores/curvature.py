"""Forget gradient over the curvature of the retain loss."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("curvature")
def curvature(forget_grad: Tensor, retain_square: Tensor, eps: float = 1e-20) -> Tensor:
    """|g_f| / (sqrt(F_r) + m): large for forgetting, small where retained answers would notice.

    F_r is the diagonal of the empirical Fisher matrix of the retain set, the mean over examples of the squared gradient of each;
    m, its root mean square over the tensor, keeps weights that no retain example touches from standing above all others. A step of
    AdamW moves all weights equally far, so the score compares what such a step does to the forget loss with what it does to a
    typical retain example. It is a choice of this package, without a paper."""
    return forget_grad.abs().div_(retain_square.sqrt().add_(retain_square.mean().sqrt() + eps))
