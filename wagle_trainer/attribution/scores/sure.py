"""Modules, or neurons, by the norm of their forget gradient."""

from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("sure")
def sure(forget_grad: Tensor, unit: str = "tensor") -> Tensor:
    """||g_f|| of the whole tensor: modules that the forget loss depends on most (SURE, arXiv 2410.16454).

    The paper cuts its modules at a threshold; here the density cuts. `unit="row"` takes the norm over each row of a
    tensor instead, which are the neurons of the paper's code (there: the top 1 % of them, anew for every batch).

    Raises:
        ValueError: another unit."""
    if unit not in ("tensor", "row"):
        raise ValueError(f'Unknown unit {unit!r} of the score "sure". Known: tensor, row.')
    if unit == "tensor":
        return forget_grad.norm().expand_as(forget_grad)
    first = forget_grad.shape[:1]
    norms = forget_grad.reshape(*first, -1).norm(dim=-1)
    return norms.view(*first, *[1] * (forget_grad.dim() - 1)).expand_as(forget_grad)
