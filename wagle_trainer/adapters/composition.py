"""Several adapters as one: `compose`, and the rule for positions that more than one of them sets."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from wagle_trainer.adapters.adapter import AdapterInfo, AdapterMismatchError, SparseAdapter
from wagle_trainer.adapters.sparse import SparseValues
from wagle_trainer.engines.sharding import named_parameters
from wagle_trainer.masking import bits

COMBINATIONS = ("error", "sum", "last")


class AdapterOverlapError(ValueError):
    """Adapters set the same weight, and no rule says which value it gets."""


def check_combination(combine: str) -> None:
    """Raise ValueError for an unknown rule."""
    if combine not in COMBINATIONS:
        raise ValueError(f"Unknown combine={combine!r}. Known: {', '.join(COMBINATIONS)}.")


def compose(
    adapters: Sequence[SparseAdapter | str | os.PathLike[str]],
    combine: str = "error",
    base: nn.Module | None = None,
) -> SparseAdapter:
    """One adapter that does what several do together.

    A weight that only one of them sets gets exactly that one's value. For a weight that several set:

    - "error": refuse.
    - "last": the value of the last adapter in the list that sets it.
    - "sum": the base model's value plus the sum of the differences to it. Computed in float64, in the order of the list,
      and rounded once to the values' dtype: float32 if any of the adapters holds float32 masters, else the model's.

    Args:
        adapters: of the same base model; objects, folders or Hub ids.
        combine: "error", "sum" or "last".
        base: the base model; needed where "sum" meets a weight that several adapters set, since adapters do not hold the
            base model's values.

    Raises:
        AdapterOverlapError: adapters overlap, and `combine` is "error", or "sum" without `base`.
        AdapterMismatchError: the adapters are not of the same base model, or not of `base`.
        ValueError: no adapters, an unknown rule, or a sum that is not finite.
    """
    check_combination(combine)
    loaded = [a if isinstance(a, SparseAdapter) else SparseAdapter.from_pretrained(a) for a in adapters]
    if not loaded:
        raise ValueError("There is nothing to compose: pass at least one adapter.")
    names = list(dict.fromkeys(name for adapter in loaded for name in adapter))
    digests: dict[str, str] = {}
    for adapter in loaded:
        for name, digest in adapter.base_digests.items():
            if digests.setdefault(name, digest) != digest:
                raise AdapterMismatchError(
                    f"The adapters are of different base models: the digests of {name!r} differ (base models "
                    f"{', '.join(sorted({repr(a.info.base_model) for a in loaded}))})."
                )
        if base is not None:
            adapter.check(base)
    parameters = named_parameters(base) if base is not None else {}
    values = {
        name: combine_values(name, [a[name] for a in loaded if name in a], combine, parameters.get(name))
        for name in names
    }
    info = AdapterInfo(
        loaded[0].info.base_model,
        loaded[0].info.task_type,
        training={"composed_of": [{"digest": a.digest, **asdict(a.info)} for a in loaded], "combine": combine},
    )
    base_dtypes = {name: dtype for adapter in loaded for name, dtype in adapter.base_dtypes.items()}
    return SparseAdapter(values, digests, info, base_dtypes)


def combine_values(name: str, parts: Sequence[SparseValues], combine: str, base: Tensor | None) -> SparseValues:
    """The values that several adapters together give one tensor; see `compose` for the rules and the errors."""
    if len(parts) == 1:
        return parts[0]
    check_overlap(name, parts, combine)
    indices = [part.index for part in parts]
    union = torch.cat(indices).unique()  # ascending
    values = parts[0].values.new_empty(len(union), dtype=_dtype(parts))
    for index, part in zip(indices, parts, strict=True):
        values[torch.searchsorted(union, index)] = part.values.to(values.dtype)
    if combine == "sum" and len(_overlap(parts)):
        if base is None:
            raise AdapterOverlapError(
                f"Several adapters set the same weights of {name!r}, and combine='sum' adds differences to the base model's "
                "values, which adapters do not hold: pass base=, the base model."
            )
        shared = shared_values(name, parts, base)
        assert shared is not None
        values[torch.searchsorted(union, shared.index)] = shared.values
    return SparseValues.from_index(parts[0].shape, union, values)


def check_overlap(name: str, parts: Sequence[SparseValues], combine: str) -> None:
    """Raise AdapterOverlapError if several adapters set the same weight of a tensor, and the rule is "error"."""
    if combine == "error" and (overlap := len(_overlap(parts))):
        raise AdapterOverlapError(
            f"{overlap:,} weights of {name!r} are set by more than one adapter. Say what they get: combine='last' (the "
            "last adapter's value) or combine='sum' (the sum of the differences to the base model)."
        )


def shared_values(name: str, parts: Sequence[SparseValues], base: Tensor) -> SparseValues | None:
    """Where several adapters set the same weight of a tensor: the sum of their differences to the base model, added to it.

    In float64, in the order of the adapters, rounded once to the format of the most exact of them.

    Raises:
        ValueError: a sum is not finite.
    """
    positions = _overlap(parts)
    if not len(positions):
        return None
    before = base.detach().reshape(-1)[positions.to(base.device)].to(positions.device).double()
    total = before.clone()
    for part in parts:
        index = part.index
        place = torch.searchsorted(index, positions).clamp_(max=max(len(index) - 1, 0))
        there = index[place] == positions if len(index) else torch.zeros_like(positions, dtype=torch.bool)
        total[there] += part.values.to(index.device)[place[there]].double() - before[there]
    values = total.to(_dtype(parts))
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"The sum of the adapters' changes to {name!r} is not finite. Use combine='last'.")
    return SparseValues.from_index(parts[0].shape, positions, values)


def _dtype(parts: Sequence[SparseValues]) -> torch.dtype:
    """The most exact format of the values."""
    return functools.reduce(torch.promote_types, (part.values.dtype for part in parts))


def _overlap(parts: Sequence[SparseValues]) -> Tensor:
    """Ascending flat positions that more than one of the parts sets, int64.

    Packed bits are compared as bits; the memory of positions is that of the values, whatever shape a file claims.
    """
    if all(part.positions.dtype == torch.uint8 for part in parts):
        seen, twice = parts[0].packed, torch.zeros_like(parts[0].packed)
        for part in parts[1:]:
            twice |= seen & part.packed
            seen = seen | part.packed
        return bits.unpack(twice, (parts[0].numel,)).nonzero().view(-1)
    positions, times = torch.cat([part.index for part in parts]).unique(return_counts=True)
    return positions[times > 1]
