"""Packed bits against plain Python."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wagle_trainer.masking import bits

pytestmark = pytest.mark.usefixtures("anywhere")
MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=9))


@settings(max_examples=150, deadline=None)
@given(array=MASKS)
def test_round_trip(array):
    mask = torch.from_numpy(array)
    packed = bits.pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (bits.packed_size(mask.numel()),) == (-(-mask.numel() // 8),)
    unpacked = bits.unpack(packed, mask.shape)
    assert unpacked.dtype == torch.bool
    assert torch.equal(unpacked, mask)
    assert bits.count(packed) == int(mask.sum())


@settings(max_examples=50, deadline=None)
@given(flat=st.lists(st.booleans(), min_size=1, max_size=40))
def test_bit_i_of_byte_j_is_position_8j_plus_i(flat):
    expected = [sum(1 << i for i, bit in enumerate(flat[j : j + 8]) if bit) for j in range(0, len(flat), 8)]
    assert bits.pack(torch.tensor(flat)).tolist() == expected


def test_other_memory_layouts():
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(bits.pack(mask.t()), bits.pack(mask.t().contiguous()))
    assert torch.equal(bits.unpack(bits.pack(mask[::2, 1:]), (4, 4)), mask[::2, 1:])


def test_nothing_packs_to_nothing():
    assert bits.pack(torch.zeros(0, dtype=torch.bool)).shape == (0,)
    assert bits.unpack(torch.zeros(0, dtype=torch.uint8), (0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_changes_in_place_leave_the_other_bits_alone(dtype):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 0.0, 1.0, 1e-7, -3.5])
    values = torch.cat([special, torch.randn(1000)]).to(dtype)
    selected = torch.rand(len(values)) < 0.5
    selected[:8:2] = False
    zeroed, scaled = values.clone(), values.clone()
    bits.zero_unselected(zeroed, selected)
    expected = torch.where(selected, values, torch.zeros((), dtype=dtype))
    assert torch.equal(zeroed.view(integers), expected.view(integers))
    bits.multiply_selected(scaled, selected, 1 - 1e-3)
    expected = torch.where(selected, values * (1 - 1e-3), values)
    assert torch.equal(scaled.view(integers)[~selected], values.view(integers)[~selected])
    torch.testing.assert_close(scaled, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_unpacked_with(transposed, monkeypatch):
    monkeypatch.setattr(bits, "CPU_CHUNK", 16)
    values = torch.arange(35.0).reshape(5, 7)
    values = values.T if transposed else values
    mask = torch.rand(values.shape) < 0.5
    for selected, part in bits.unpacked_with(bits.pack(mask), values):
        part[selected] = -1
    assert torch.equal(values == -1, mask)
