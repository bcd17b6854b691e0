"""Rank of the input that is active on the forget set alone, and rank of the weight."""

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score
from wagle_trainer.models.architecture import WeightMatrix

_CHUNK = 1 << 24  # weights ranked at a time: their positions take eight bytes each


@register_score("frp")
def frp(
    weight: Tensor,
    forget_activation: Tensor | None,
    retain_activation: Tensor | None,
    layout: WeightMatrix,
    beta: float = 0.05,
    eps: float = 1e-6,
) -> Tensor | None:
    """(rank of a_f / (a_r + eps) + beta * rank of |theta|) / columns, both in the row: FRP (arXiv 2608.25429).

    a is the root mean square of the input feature; the paper's code takes the mean over examples of the norm. Ranks
    count from 0, lowest first. The paper selects 3 % of each row of the MLPs, which is scope="row", density=0.03,
    include=["mlp"], with beta from 0 to 0.15, and sets the selected weights to zero. Only matrices have inputs:
    embeddings, norms and biases are frozen."""
    if forget_activation is None or retain_activation is None:
        return None
    ratio = _ranks(forget_activation / (retain_activation + eps), layout.input_dim)
    magnitude = layout.flat_rows(weight.float().abs())
    step = max(1, _CHUNK // magnitude.shape[1])
    ranks = torch.cat([_ranks(part, -1) for part in magnitude.split(step)])
    score = layout.from_flat_rows(ranks, weight.shape).mul(beta).add(ratio)
    return score.div_(weight.shape[layout.input_dim])


def _ranks(values: Tensor, dim: int) -> Tensor:
    """Ranks along a dimension, float32, from 0 for the lowest; of equal values, the first ranks lower."""
    order = values.argsort(dim=dim, stable=True)
    places = torch.arange(values.shape[dim], device=values.device)
    shape = [1] * values.dim()
    shape[dim] = -1
    return torch.empty_like(order).scatter_(dim, order, places.view(shape).expand_as(order)).float()
