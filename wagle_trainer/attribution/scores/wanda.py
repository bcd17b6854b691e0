"""Weight times input activation."""

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("wanda")
def wanda(weight: Tensor, forget_activation: Tensor | None) -> Tensor:
    """|theta| times the norm of its input over the forget set (arXiv 2306.11695, eq. 1); the paper's scope is "row".

    0 for parameters that are not the weight of an `nn.Linear`: those are selected last."""
    if forget_activation is None:
        return torch.zeros(weight.shape, device=weight.device)
    return weight.float().abs().mul_(forget_activation)
