"""Modules, or neurons, by the norm of their forget gradient."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score
from wagle_trainer.models.architecture import WeightMatrix


@register_score("sure")
def sure(forget_grad: Tensor, layout: WeightMatrix, unit: str = "tensor") -> Tensor:
    """||g_f|| of the whole tensor: modules that the forget loss depends on most (SURE, arXiv 2410.16454).

    The paper cuts its modules at a threshold; here the density cuts. `unit="row"` takes the norm over each row of a
    matrix instead, which are the neurons of the paper's code (there: the top 1 % of them, again for every batch).

    Raises:
        ValueError: another unit."""
    if unit not in ("tensor", "row"):
        raise ValueError(f'Unknown unit {unit!r} of the score "sure". Known: tensor, row.')
    if unit == "tensor":
        return forget_grad.norm().expand_as(forget_grad)
    rows = layout.flat_rows(forget_grad)
    return layout.from_flat_rows(rows.norm(dim=-1, keepdim=True).expand_as(rows), forget_grad.shape)
