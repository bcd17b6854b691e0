"""Weight times how selective its input is for the forget set."""

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("frp")
def frp(
    weight: Tensor, forget_activation: Tensor | None, retain_activation: Tensor | None, eps: float = 1e-6
) -> Tensor:
    """|theta| * a_f / (a_r + eps): weights whose input is active on the forget set, not on the retain set (FRAG).

    a is the root mean square of the input feature. 0 for parameters that are not the weight of an `nn.Linear`: those
    are selected last."""
    if forget_activation is None or retain_activation is None:
        return torch.zeros(weight.shape, device=weight.device)
    return weight.float().abs().mul_(forget_activation / (retain_activation + eps))
