"""Forget gradient over retain gradient."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("grad_ratio")
def grad_ratio(forget_grad: Tensor, retain_grad: Tensor, eps: float = 1e-10) -> Tensor:
    """|g_f| / (|g_r| + eps): large for forgetting, small for retaining (GRIN, arXiv 2508.06467).

    `eps` is below the gradients that matter in a large model; a larger one makes the score more like `gradient`."""
    return forget_grad.abs().div_(retain_grad.abs().add_(eps))
