"""A cache with room against Transformers' own, over any order of what is done to it."""

import copy
import gc

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from transformers.cache_utils import DynamicCache, DynamicLayer

from wagle_trainer.evaluation.roomy_cache import ROOM, RoomyLayer, with_room, without_gaps

steps = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.integers(1, ROOM + 3)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 2), min_size=1, max_size=4)),
        st.tuples(st.just("crop"), st.integers(1, 3)),
        st.tuples(st.just("copy"), st.none()),
    ),
    min_size=1,
    max_size=12,
)


@given(steps)
@settings(max_examples=60, deadline=None)
def test_equals_a_layer_without_room(steps):
    plain, roomy = DynamicLayer(), RoomyLayer.of(DynamicLayer())
    generator = torch.Generator().manual_seed(0)
    rows, length = 3, 0
    for what, how in [("update", 4), *steps]:
        if what == "update":
            new = torch.randn(2, rows, 2, how, 5, generator=generator)
            for found, wanted in zip(roomy.update(*new), plain.update(*new), strict=True):
                assert torch.equal(found, wanted)
            length += how
        elif what == "select":
            indices = torch.tensor([index % rows for index in how])
            plain.batch_select_indices(indices)
            roomy.batch_select_indices(indices)
            rows = len(indices)
        elif what == "crop" and length > how:
            plain.crop(-how)
            roomy.crop(-how)
            length -= how
        elif what == "copy":
            left_behind, roomy = roomy, copy.deepcopy(roomy)
            left_behind.update(*torch.randn(2, rows, 2, 1, 5, generator=generator))
        assert roomy.get_seq_length() == plain.get_seq_length() == length
        assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)


def test_new_tokens_are_written_behind_the_old_ones(llama):
    cache = with_room(DynamicCache(config=llama.config))
    assert all(type(layer) is RoomyLayer for layer in cache.layers)
    layer = cache.layers[0]
    layer.update(*torch.randn(2, 1, 2, 4, 5))
    places = set()
    for _ in range(ROOM):
        layer.update(*torch.randn(2, 1, 2, 1, 5))
        places.add(layer.keys.data_ptr())
    assert len(places) == 1
    layer.update(*torch.randn(2, 1, 2, 1, 5))
    assert layer.keys.data_ptr() not in places  # the room was full


@given(st.sets(st.integers(0, 7), min_size=1), st.integers(0, 3))
@settings(deadline=None)
def test_rows_that_stay_fill_the_gaps(staying, behind):
    """While half of the rows stay, those in gaps alone are copied: the others lie where they lay. Fewer take less memory."""
    layer, plain = RoomyLayer.of(DynamicLayer()), DynamicLayer()
    for length in (3, 1, *[1] * behind):
        states = torch.randn(2, 8, 1, length, 5)
        layer.update(*states)
        plain.update(*states)
    order = without_gaps(sorted(staying))
    assert sorted(order) == sorted(staying)
    assert all(old == new or (old >= len(order) and new not in staying) for new, old in enumerate(order))
    start = layer.keys.data_ptr()
    for cache in (layer, plain):
        cache.batch_select_indices(torch.tensor(order, dtype=torch.long))
    assert torch.equal(layer.keys, plain.keys) and torch.equal(layer.values, plain.values)
    assert (layer.keys.data_ptr() == start) == (2 * len(order) >= 8)
    assert layer.keys.untyped_storage().nbytes() <= 2 * layer.keys[0].nbytes * len(order) * (ROOM + 4) / 4
    states = torch.randn(2, len(order), 1, 1, 5)
    for found, wanted in zip(layer.update(*states), plain.update(*states), strict=True):
        assert torch.equal(found, wanted)


def test_rows_that_are_gone_take_no_memory():
    """Rows in another order are copied, and the room of all goes at once, not only when the next token comes."""
    layer = RoomyLayer.of(DynamicLayer())
    for length in (4, 1):
        layer.update(*torch.randn(2, 6, 1, length, 1237))

    def held() -> int:
        return sum(isinstance(found, torch.Tensor) and found.shape[-1:] == (1237,) for found in gc.get_objects())

    layer.batch_select_indices(torch.tensor([3, 0]))
    assert held() == 2
