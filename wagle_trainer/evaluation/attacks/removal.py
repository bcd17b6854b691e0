"""Attack by removal: the reference model's values at a part of the changed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from wagle_trainer.evaluation.attacks.attack import Point, Row, Target, register_attack
from wagle_trainer.masking.bits import as_integers
from wagle_trainer.models.modes import unchanged


def _check(rows: Sequence[Row], *, shares: Sequence[float]) -> None:
    if any(not 0 < share <= 1 for share in shares) or not shares:
        raise ValueError(f"shares must be in (0, 1], not {list(shares)}.")


@register_attack("removal", unit="share of the changed weights restored", check=_check)
def removal(target: Target, *, shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75)) -> list[Point]:
    """Restore the reference model's values at a share of the weights that unlearning changed.

    A holder of the base model, or of the sparse adapter, can do this. With all of them restored the model is bitwise
    identical to the reference model and recovers everything; so 1 is not among the default shares. The curve says how
    many of the changed weights the forgetting needs. Positions are drawn by the seed within each tensor; a larger share
    contains the positions of a smaller one.

    Args:
        target: the models and the measure.
        shares: of the changed weights, each in (0, 1].

    Returns:
        One point per entry of `shares`, in rising order.

    Raises:
        ValueError: a share out of range; the models differ in the names, shapes or dtypes of their weights, or in none
            of the values.
    """
    _check(target.rows, shares=shares)
    changes = _changes(target.before, target.after)
    before, after = target.baselines()
    points = []
    with (
        unchanged(target.after, weights=True),
        tqdm(sorted(shares), desc="Removal", disable=not target.progress) as bar,
    ):
        for share in bar:
            # from small to large share of the same order: restored values stay
            for seed, (weight, base, positions) in enumerate(changes, start=target.seed):
                order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
                chosen = positions[order[: round(share * len(positions))].to(positions.device)]
                values = base.detach().flatten()[chosen.to(base.device)].to(weight.device)
                with torch.no_grad():
                    weight.put_(chosen, values)  # by flat position, whatever the memory layout
            points.append(Point(share, target.knows(), before, after))
    return points


def _changes(before: Any, after: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each weight that differs: it, its base, and the flat positions; compared as integers, as masks are."""
    bases, weights = (dict(model.named_parameters()) for model in (before, after))
    if bases.keys() != weights.keys():
        first = sorted(bases.keys() ^ weights.keys())[0]
        raise ValueError(
            f"The reference model and the unlearned model have different weights: only one of them has {first!r}."
        )
    changes = []
    for name, weight in weights.items():
        base = bases[name]
        if (base.shape, base.dtype) != (weight.shape, weight.dtype):
            raise ValueError(
                f"{name!r} is {base.dtype} {tuple(base.shape)} in the reference model and {weight.dtype} "
                f"{tuple(weight.shape)} in the unlearned model: load both in the same dtype."
            )
        differs = as_integers(base.detach()).to(weight.device) != as_integers(weight.detach())
        positions = differs.flatten().nonzero().squeeze(-1)
        if len(positions):
            changes.append((weight, base, positions))
    if not changes:
        raise ValueError(
            "The reference model and the unlearned model have the same weights: there is no change to remove."
        )
    return changes
