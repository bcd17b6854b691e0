"""Chance: the control."""

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("random")
def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), seeded: the control that every claim about a score has to beat."""
    # Drawn on the CPU, so that the mask does not depend on where the model lies.
    return torch.rand(weight.shape, generator=generator, dtype=torch.float32).to(weight.device)
