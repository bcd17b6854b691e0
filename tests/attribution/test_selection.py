"""The selection against a stable sort: descending score, ties to the earliest tensor and then to the lowest index."""

import math
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wagle_trainer.attribution.selection import find_threshold, select
from wagle_trainer.masking import bits

pytestmark = pytest.mark.usefixtures("anywhere")
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.float32(1e-45))
FEW = st.sampled_from([0.0, SMALLEST, 1e-40, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), 1e30, LARGEST])
ANY = st.floats(0, LARGEST, width=32)
SHAPES = st.lists(hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), min_size=1, max_size=4)
DENSITIES = st.floats(0, 1, exclude_min=True)


@st.composite
def score_dicts(draw):
    elements = draw(st.sampled_from([FEW, ANY, st.one_of(FEW, ANY)]))
    return {
        f"tensor{index}": torch.from_numpy(draw(hnp.arrays(np.float32, shape, elements=elements)))
        for index, shape in enumerate(draw(SHAPES))
    }


def by_sort(values: np.ndarray, density: float) -> np.ndarray:
    chosen = np.zeros(values.size, dtype=bool)
    chosen[np.argsort(-values.reshape(-1), kind="stable")[: math.floor(density * values.size)]] = True
    return chosen.reshape(values.shape)


def oracle(scores: dict[str, torch.Tensor], density: float, scope: str) -> dict[str, np.ndarray]:
    arrays = {name: score.numpy() for name, score in scores.items()}
    if scope == "global":
        chosen = by_sort(np.concatenate([array.reshape(-1) for array in arrays.values()]), density)
        ends = np.cumsum([array.size for array in arrays.values()])[:-1]
        parts = np.split(chosen, ends)
        return {name: part.reshape(arrays[name].shape) for name, part in zip(arrays, parts, strict=True)}
    if scope == "tensor":
        return {name: by_sort(array, density) for name, array in arrays.items()}
    return {
        name: np.stack([by_sort(row, density) for row in array]) if array.ndim > 1 else by_sort(array, density)
        for name, array in arrays.items()
    }


def selected(scores: dict[str, torch.Tensor], density: float, scope: str) -> dict[str, np.ndarray]:
    shapes = {name: score.shape for name, score in scores.items()}
    packed = select({name: score.clone() for name, score in scores.items()}, density, scope)
    assert list(packed) == list(scores)
    return {name: bits.unpack(packed[name], shapes[name]).numpy() for name in packed}


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
@settings(max_examples=80, deadline=None)
@given(scores=score_dicts(), density=DENSITIES)
@example(scores={"a": torch.zeros(3, 5), "b": torch.zeros(7)}, density=0.5)
@example(scores={"a": torch.ones(4, 4), "b": torch.ones(2, 3)}, density=1.0)
@example(scores={"a": torch.ones(4), "b": torch.ones(4)}, density=0.01)
@example(scores={"a": torch.full((9,), LARGEST)}, density=0.3)
def test_equals_a_stable_sort(scope, scores, density):
    expected = oracle(scores, density, scope)
    found = selected(scores, density, scope)
    for name in scores:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@settings(max_examples=30, deadline=None)
@given(values=hnp.arrays(np.float32, st.integers(1, 40), elements=st.one_of(FEW, ANY)))
def test_every_possible_count(values):
    for count in range(1, values.size + 1):
        density = count / values.size
        found = selected({"only": torch.from_numpy(values)}, density, "global")["only"]
        assert found.sum() == math.floor(density * values.size)
        np.testing.assert_array_equal(found, by_sort(values, density))


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.8, 0.999])
def test_large_tensors_with_many_equal_scores(scope, density):
    generator = torch.Generator().manual_seed(0)
    scores = {
        "few values": torch.randint(0, 4, (700, 500), generator=generator).float() * 1e-20,
        "any": torch.rand(300_001, generator=generator) * 3e-20,
        "equal": torch.full((200, 300), 2e-20),
    }
    expected = oracle(scores, density, scope)
    found = selected(scores, density, scope)
    for name in scores:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_neighbouring_floats_are_told_apart():
    values = torch.arange(1 << 20, (1 << 20) + 1000, dtype=torch.int32).view(torch.float32)  # consecutive subnormals
    found = selected({"only": values.flip(0)}, 0.25, "global")["only"]
    assert found[:250].all()
    assert found.sum() == 250


class Processes:
    """Threads that stand for processes: `reduce` sums a histogram over all of them, as an all-reduce does."""

    def __init__(self, number: int):
        self.barrier = threading.Barrier(number, timeout=1500)
        self.number, self.parts = number, {}

    def reduce(self, rank: int, histogram: torch.Tensor) -> None:
        assert histogram.dtype == torch.int64
        self.parts[rank] = histogram.clone()
        self.barrier.wait()
        histogram.copy_(sum(self.parts.values()))
        self.barrier.wait()

    def run(self, work) -> list:
        results = [None] * self.number

        def one(rank):
            results[rank] = work(rank, lambda histogram: self.reduce(rank, histogram))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@settings(max_examples=25, deadline=None)
@given(
    values=hnp.arrays(np.float32, st.integers(1, 60), elements=st.one_of(FEW, ANY)),
    density=DENSITIES,
    number=st.integers(1, 4),
)
def test_shards_agree_on_the_threshold(values, density, number):
    count = math.floor(density * values.size)
    shards = [torch.from_numpy(shard.copy()) for shard in np.array_split(values, number)]
    whole = find_threshold([torch.from_numpy(values)], count)
    assert (
        Processes(number).run(lambda rank, reduce: find_threshold([shards[rank]], count, reduce)) == [whole] * number
    )


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("bad", [-1.0, -0.0, -SMALLEST, math.nan, -math.nan, math.inf, -math.inf])
def test_refuses_what_is_no_score(bad, scope):
    scores = {"good": torch.ones(5), "bad": torch.tensor([1.0, bad, 2.0])}
    with pytest.raises(ValueError, match="finite and not negative"):
        select(scores, 0.5, scope)


def test_scores_are_taken_one_after_the_other():
    """Scores that are computed on the way are not all in memory at once."""
    alive, most = [], 0

    class Computed:
        def __iter__(self):
            nonlocal most
            for seed in range(20):
                score = torch.rand(100, generator=torch.Generator().manual_seed(seed))
                alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(score)]
                most = max(most, len(alive))
                yield score

    everything = torch.cat(list(Computed()))
    most = 0
    threshold = find_threshold(Computed(), 700)
    assert np.int32(threshold.bits).view(np.float32) == everything.sort(descending=True).values[699]
    assert most <= 2 * torch.get_num_threads()
