"""Attack by quantisation: rounding may undo the small changes of unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wagle_trainer.evaluation.attacks.attack import Point, Row, Target, register_attack
from wagle_trainer.models.architecture import weight_matrices
from wagle_trainer.models.modes import unchanged


def _check(rows: Sequence[Row], *, bits: Sequence[int], group_size: int) -> None:
    if any(not 2 <= number <= 8 for number in bits) or not bits:
        raise ValueError(f"bits must be from 2 to 8, not {list(bits)}.")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, not {group_size}.")


@register_attack("quantization", unit="bits", check=_check)
def quantization(target: Target, *, bits: Sequence[int] = (8, 4), group_size: int = 64) -> list[Point]:
    """Round the weights to 8 and to 4 bits (Zhang et al. 2024, arXiv 2410.16454): updates smaller than the rounding step
    vanish, and with them the forgetting.

    Symmetric round-to-nearest with the absolute maximum as scale, which needs no data: per output row from 5 bits on, as
    LLM.int8 stores weights; per group of consecutive inputs in each row below that, as 4-bit formats do. All linear
    layers and experts but the output head, as quantisers do by default. The rounded values are computed with in the model's own
    dtype: this is the loss of precision of a quantised model, not its speed or its size.

    Args:
        target: the models and the measure.
        bits: how many, each from 2 to 8.
        group_size: inputs that share a scale below 5 bits.

    Returns:
        One point per entry of `bits`.

    Raises:
        ValueError: bits or group size out of range, or the model has no linear layers.
    """
    _check(target.rows, bits=bits, group_size=group_size)
    before, after = target.baselines()
    points = []
    for number in bits:
        with unchanged(target.after, weights=True):
            _quantize(target.after, number, None if number > 4 else group_size)
            points.append(Point(number, target.knows(), before, after))
    return points


def round_to_nearest(weight: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """The values that a symmetric absmax quantiser stores: s * round(w / s), s = max |w| / (2^(bits - 1) - 1).

    Args:
        weight: (outputs, inputs).
        bits: from 2 on.
        group_size: consecutive inputs of a row that share a scale, the last group may be shorter; None: the whole row.

    Returns:
        As `weight`, in its dtype; computed in float32.
    """
    rows, columns = weight.shape
    size = columns if group_size is None else min(group_size, columns)
    padded = nn.functional.pad(weight.detach().float(), (0, -columns % size))  # zeros change no maximum
    groups = padded.reshape(rows, -1, size)
    scale = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded = torch.where(scale > 0, (groups / scale).round() * scale, groups)
    return rounded.reshape(rows, -1)[:, :columns].to(weight.dtype)


@torch.no_grad()
def _quantize(model: Any, bits: int, group_size: int | None) -> None:
    matrices, weights = weight_matrices(model), dict(model.named_parameters())
    if not matrices:
        raise ValueError(f"{type(model).__name__} has no linear layers that could be quantised.")
    for name, matrix in matrices.items():
        weight = weights[name]
        by_output = matrix.rows(weight)
        rounded = round_to_nearest(by_output.reshape(-1, by_output.shape[-1]), bits, group_size)
        by_output.copy_(rounded.view(by_output.shape))
