"""Removal: does putting the old values back at the changed positions bring the knowledge back?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from wagle_trainer.evaluation.attacks.attack import Point, Target, register_attack
from wagle_trainer.masking.bits import as_integers
from wagle_trainer.models.modes import unchanged


@register_attack("removal", unit="share of the changed weights put back")
def removal(target: Target, *, shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75)) -> list[Point]:
    """Put the values before unlearning back at a share of the weights that it changed.

    What a holder of the base model, or of the sparse adapter, can do: with all of them put back the model is the one
    before unlearning, bit for bit, and all comes back; so 1 is not among the default shares. The curve says how many of
    the changed weights the forgetting hangs on. The same positions come first for every share: drawn by the seed, in
    each tensor for itself.

    Args:
        target: the models and how they are judged.
        shares: of the changed weights, each in (0, 1].

    Returns:
        One point per entry of `shares`, in rising order.

    Raises:
        ValueError: a share out of range; the models differ in the names, shapes or dtypes of their weights, or in none
            of the values.
    """
    if any(not 0 < share <= 1 for share in shares) or not shares:
        raise ValueError(f"shares must be in (0, 1], not {list(shares)}.")
    changes = _changes(target.before, target.after)
    before, after = target.baselines()
    points = []
    with (
        unchanged(target.after, weights=True),
        tqdm(sorted(shares), desc="Removal", disable=not target.progress) as bar,
    ):
        for share in bar:
            # from small to large share of the same order: what is back stays back
            for seed, (weight, base, positions) in enumerate(changes, start=target.seed):
                order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
                chosen = positions[order[: round(share * len(positions))].to(positions.device)]
                values = base.detach().flatten()[chosen.to(base.device)].to(weight.device)
                with torch.no_grad():
                    weight.put_(chosen, values)  # by flat position, however it lies in memory
            points.append(Point(share, target.knows(), before, after))
    return points


def _changes(before: Any, after: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each weight that differs: it, its base, and the flat positions; compared as integers, as masks are."""
    bases, weights = (dict(model.named_parameters()) for model in (before, after))
    if bases.keys() != weights.keys():
        first = sorted(bases.keys() ^ weights.keys())[0]
        raise ValueError(
            f"The models before and after do not have the same weights: {first!r} is in one of them only."
        )
    changes = []
    for name, weight in weights.items():
        base = bases[name]
        if (base.shape, base.dtype) != (weight.shape, weight.dtype):
            raise ValueError(
                f"{name!r} is {base.dtype} {tuple(base.shape)} before and {weight.dtype} {tuple(weight.shape)} after: "
                "load both models in the same dtype."
            )
        differs = as_integers(base.detach()).to(weight.device) != as_integers(weight.detach())
        positions = differs.flatten().nonzero().squeeze(-1)
        if len(positions):
            changes.append((weight, base, positions))
    if not changes:
        raise ValueError("The models before and after have the same weights: there is no change to remove.")
    return changes
