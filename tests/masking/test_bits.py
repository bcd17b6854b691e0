"""Packed bits against plain Python."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wagle_trainer.masking import bits

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
