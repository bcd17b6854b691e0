"""WAGLE: weight attribution for unlearning."""

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("wagle")
def wagle(weight: Tensor, forget_grad: Tensor, retain_grad: Tensor, gamma: float) -> Tensor:
    """|(theta - g_r / gamma) * g_f|: how forgetting responds once retaining has re-settled (arXiv 2410.17509, eq. 7)."""
    return torch.sub(weight, retain_grad, alpha=1 / gamma).mul_(forget_grad).abs_()  # one temporary, not four
