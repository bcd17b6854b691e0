"""`compose` against plain loops over the weights."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_trainer.adapters import AdapterMismatchError, AdapterOverlapError, compose, diff, merge

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_hand(base, tuned, masks, combine):
    """base, tuned: flat values; the rules, one weight at a time, in Python's float64."""
    result = base.clone()
    for i in range(len(base)):
        setting = [t[i] for t, mask in zip(tuned, masks, strict=True) if mask[i]]
        if len(setting) == 1 or (setting and combine == "last"):
            result[i] = setting[-1]
        elif setting:
            total = np.float64(base[i])
            for value in setting:
                total = total + (np.float64(value) - np.float64(base[i]))
            result[i] = torch.tensor(total, dtype=torch.float64).to(base.dtype)
    return result


@settings(max_examples=15, deadline=None)
@given(
    densities=st.lists(st.sampled_from([0.02, 0.1, 0.5, 1.0]), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rules(densities, dtype, tied, seed, make_net, change, same_bits):
    base = make_net(seed, vocabulary=7, width=3, tied=tied, dtype=dtype)
    made = [change(base, density, seed + i) for i, density in enumerate(densities)]
    made = [(tuned, masks) for tuned, masks in made if any(bool(m.any()) for m in masks.values())]
    if not made:
        return
    adapters = [diff(base, tuned) for tuned, _ in made]
    overlap = any(sum(m[name].int() for _, m in made).max() > 1 for name in made[0][1])
    if overlap:
        with pytest.raises(
            AdapterOverlapError, match=r"weights of '.*' are set by more than one adapter.*combine='last'"
        ):
            compose(adapters)
        with pytest.raises(AdapterOverlapError, match="pass base="):
            compose(adapters, "sum")
    for combine in ("last", "sum", "error")[: 2 if overlap else 3]:
        merged = merge(copy.deepcopy(base), compose(adapters, combine, base))
        for name, parameter in merged.named_parameters():
            flat = [tuned.get_parameter(name).detach().reshape(-1) for tuned, _ in made]
            masks = [m[name].reshape(-1) for _, m in made]
            expected = by_hand(base.get_parameter(name).detach().reshape(-1), flat, masks, combine)
            assert torch.equal(parameter.detach().reshape(-1), expected), (name, combine)


def test_without_overlap_order_does_not_matter(make_net, change, tmp_path):
    base = make_net()
    tuned, masks = change(base, 0.5, 0)
    parts = []
    for half in (0, 1):
        part = copy.deepcopy(base)
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                mine = (torch.arange(parameter.numel()) % 2 == half).view(parameter.shape) & masks[name]
                parameter.copy_(torch.where(mine, tuned.get_parameter(name), parameter))
        parts.append(diff(base, part))
    assert compose(parts) == compose(parts[::-1]) == compose(parts, "sum") == diff(base, tuned)
    parts[0].save_pretrained(tmp_path / "one")
    together = compose([tmp_path / "one", parts[1]])
    assert together == diff(base, tuned)
    assert [part["digest"] for part in together.info.training["composed_of"]] == [part.digest for part in parts]
    together.save_pretrained(tmp_path / "both")  # JSON can hold it


def test_what_cannot_be_composed(make_net, change):
    base, other = make_net(), make_net(1)
    one, two = (diff(model, change(model, 0.5, 0)[0]) for model in (base, other))
    with pytest.raises(AdapterMismatchError, match="different base models: the digests of 'embedding.weight' differ"):
        compose([one, two], "last")
    with pytest.raises(AdapterMismatchError, match="made for another base model"):
        compose([one, one], "sum", other)
    with pytest.raises(ValueError, match="Unknown combine='mean'. Known: error, sum, last"):
        compose([one], "mean")
    with pytest.raises(ValueError, match="at least one"):
        compose([])
    infinite = copy.deepcopy(base)
    with torch.no_grad():
        infinite.head.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="changes to 'head.weight' is not finite"):
        compose([diff(base, infinite)] * 2, "sum", base)
