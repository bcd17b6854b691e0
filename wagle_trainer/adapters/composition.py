"""Several adapters as one: `compose`, and the rule for positions that more than one of them sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from wagle_trainer.adapters.adapter import AdapterInfo, AdapterMismatchError, SparseAdapter
from wagle_trainer.adapters.sparse import SparseValues
from wagle_trainer.sharding import named_parameters

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

    A weight that only one of them sets gets that one's value, bit for bit. For a weight that several set:

    - "error": refuse.
    - "last": the value of the last adapter in the list that sets it.
    - "sum": the base model's value plus the sum of the differences to it. Computed in float64, in the order of the list,
      and rounded once to the model's dtype.

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
    return SparseAdapter(values, digests, info)


def combine_values(name: str, parts: Sequence[SparseValues], combine: str, base: Tensor | None) -> SparseValues:
    """The values that several adapters together give one tensor; see `compose` for the rules and the errors."""
    if len(parts) == 1:
        return parts[0]
    indices = [part.index for part in parts]
    union, times = torch.cat(indices).unique(return_counts=True)  # ascending
    places = [torch.searchsorted(union, index) for index in indices]
    values = parts[0].values.new_empty(len(union))
    for place, part in zip(places, parts, strict=True):
        values[place] = part.values
    shared = times > 1
    overlap = int(shared.sum())
    if overlap and combine == "error":
        raise AdapterOverlapError(
            f"{overlap:,} weights of {name!r} are set by more than one adapter. Say what they get: combine='last' (the "
            "last adapter's value) or combine='sum' (the sum of the differences to the base model)."
        )
    if overlap and combine == "sum":
        if base is None:
            raise AdapterOverlapError(
                f"{overlap:,} weights of {name!r} are set by more than one adapter, and combine='sum' adds differences to "
                "the base model's values, which adapters do not hold: pass base=, the base model."
            )
        values[shared] = _sum(name, parts, places, union, shared, base)
    return SparseValues.from_index(parts[0].shape, union, values)


def _sum(
    name: str, parts: Sequence[SparseValues], places: list[Tensor], union: Tensor, shared: Tensor, base: Tensor
) -> Tensor:
    before = base.detach().reshape(-1)[union].double()
    total = before.clone()
    for place, part in zip(places, parts, strict=True):
        total[place] += part.values.double() - before[place]
    result = total[shared].to(parts[0].values.dtype)
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"The sum of the adapters' changes to {name!r} is not finite. Use combine='last'.")
    return result
