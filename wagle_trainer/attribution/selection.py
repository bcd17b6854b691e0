"""Exact top-k selection by counting over the bit pattern: no sort, no index arrays.

A non-negative float32 orders like its bit pattern read as an integer. One pass counts the upper 16 of those 31 bits, a
second the lower 15 among the scores that share the threshold's upper ones; that gives the k-th largest score exactly,
however large the model, and adds up over shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from wagle_trainer.attribution.score_histogram import ScoreHistogram
from wagle_trainer.masking import bits

SCOPES = ("global", "tensor", "row")
_LOW_BITS = 15
_BINS = 1 << 17  # sign, exponent and the upper mantissa bits; the half with the sign set must stay empty
EXCLUDED = -1  # as a bit pattern (a NaN): a weight that is no candidate. As an integer it lies below every score
_CHUNK = 1 << 20  # elements counted at a time: many beside the bins, few beside the processor's cache

T = TypeVar("T")
Reduce = Callable[[Tensor], None]


def _no_other(counts: Tensor) -> None:
    """The sum over one process."""


class Shards(NamedTuple):
    """How scores are spread over processes: each holds a run of the first dimension, in the order of processes."""

    process: int = 0
    num_processes: int = 1
    reduce: Reduce = _no_other


ONE = Shards()


class Threshold(NamedTuple):
    """What is selected: every score above `bits` (a float32 bit pattern), and the first `ties` scores equal to it."""

    bits: int
    ties: int
    equal: int


NOTHING = Threshold(np.float32(np.inf).view(np.int32).item(), 0, 0)


def num_selected(density: float, num_weights: int) -> int:
    """floor(density * N), the number of weights that a density selects out of N."""
    return math.floor(density * num_weights)


def exclude(score: Tensor, excluded: Tensor) -> Tensor:
    """A copy of the score whose weights where `excluded` is True are never selected and count for no density."""
    return score.view(torch.int32).masked_fill(excluded, EXCLUDED).view(torch.float32)


def select(
    scores: dict[str, Tensor],
    density: float,
    scope: str = "global",
    shards: Shards = ONE,
    excluded: Mapping[str, int] | None = None,
    histogram: ScoreHistogram | None = None,
) -> dict[str, Tensor]:
    """The `density` share of the weights with the highest scores, as packed bits.

    Ties at the threshold go to the tensor that comes first, then to the lowest flat index.

    Args:
        scores: name -> float32 tensor, non-negative and finite. Emptied on the way: each tensor is let go once its
            mask is made.
        density: in (0, 1].
        scope: "global" compares all weights, "tensor" those of each tensor, "row" those of each first-dimension row.
        shards: with the global scope, `scores` may be the rows that lie on this process.
        excluded: how many weights of each whole tensor `exclude` took out, if any; the density is of the others.
        histogram: the scores are counted in, those of all processes.

    Returns:
        name -> packed uint8 (see `masking.bits`) of what `scores` held, in its order.
    """
    excluded = excluded or {}
    if scope == "global":
        total = torch.tensor(sum(score.numel() for score in scores.values()))
        shards.reduce(total)
        count = num_selected(density, int(total) - sum(excluded.get(name, 0) for name in scores))
        threshold = find_threshold(list(scores.values()), count, shards.reduce, histogram)
        if histogram is not None and count:
            histogram.threshold = np.int32(threshold.bits).view(np.float32).item()
        ties = _ties_to_take(scores, threshold, shards)

        def apply(name: str) -> tuple[str, Tensor]:
            return name, _apply(scores.pop(name), threshold.bits, ties[name])

        in_threads = all(map(bits.on_cpu, scores.values()))
        return dict(_in_threads(apply, list(scores)) if in_threads else map(apply, list(scores)))
    return {
        name: _select_within(scores.pop(name), density, scope, excluded.get(name, 0), histogram)
        for name in list(scores)
    }


def _select_within(
    score: Tensor, density: float, scope: str, excluded: int, histogram: ScoreHistogram | None
) -> Tensor:
    """Packed mask of one tensor, whose weights compete with each other only."""
    if scope == "row" and score.dim() > 1:
        rows = score.flatten(1)
        selected = _select_uneven_rows(rows, density) if excluded else _select_rows(rows, density)
        if histogram is not None:
            histogram.add_counts(_upper_counts([rows]), _upper_counts([rows[selected]]))
        return bits.pack(selected)
    number = num_selected(density, score.numel() - excluded)
    threshold = find_threshold([score], number, histogram=histogram)
    return _apply(score, threshold.bits, None if threshold.ties == threshold.equal else threshold.ties)


def _ties_to_take(scores: Mapping[str, Tensor], threshold: Threshold, shards: Shards) -> dict[str, int | None]:
    """How many of its scores at the threshold each tensor may take, first come first served; None where all may, so
    that it does not matter which come first."""
    if threshold.ties == threshold.equal:
        return dict.fromkeys(scores)
    counts = torch.zeros(len(scores), shards.num_processes, dtype=torch.int64)
    for index, score in enumerate(scores.values()):
        counts[index, shards.process] = (score.reshape(-1).view(torch.int32) == threshold.bits).sum().cpu()
    shards.reduce(counts)
    # Row r of the table is tensor r, its columns the processes: in the order of rows, flat positions only grow.
    before = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)[:, shards.process]
    return {name: max(0, threshold.ties - int(taken)) for name, taken in zip(scores, before, strict=True)}


def find_threshold(
    scores: Iterable[Tensor], count: int, reduce: Reduce = _no_other, histogram: ScoreHistogram | None = None
) -> Threshold:
    """The threshold that selects exactly `count` of the scores.

    Args:
        scores: float32 tensors, non-negative and finite or `EXCLUDED`; iterated over twice, with no more tensors held than
            there are threads.
        count: how many to select, out of all processes.
        reduce: sums an int64 tensor over processes in place, when each holds a shard.
        histogram: the scores of all processes are counted in.

    Raises:
        ValueError: a score is negative, infinite or NaN.
    """
    if count == 0 and histogram is None:
        return NOTHING
    high = _reduced(_upper_counts(scores), reduce)
    if high[np.float32(np.inf).view(np.int32).item() >> _LOW_BITS :].any():
        raise ValueError("Attribution scores must be finite and not negative.")
    if histogram is not None:
        histogram.add(high, count)
    if count == 0:
        return NOTHING
    prefix, below_top = _bin_of(high, count)
    low = _reduced(_histogram(scores, prefix), reduce)
    suffix, below = _bin_of(low, count - below_top)
    return Threshold((prefix << _LOW_BITS) | suffix, count - below_top - below, int(low[suffix]))


def _upper_counts(scores: Iterable[Tensor]) -> np.ndarray:
    """Counts of the upper bits, without `EXCLUDED`."""
    counts = _histogram(scores)
    counts[-1] = 0
    return counts


def _reduced(histogram: np.ndarray, reduce: Reduce) -> np.ndarray:
    reduce(torch.from_numpy(histogram))
    return histogram


def _bin_of(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """The bin that holds the `count`-th largest value, and how many values lie above that bin."""
    above = np.cumsum(histogram[::-1])
    position = int(np.searchsorted(above, count))
    return len(histogram) - 1 - position, int(above[position] - histogram[len(histogram) - 1 - position])


def _histogram(scores: Iterable[Tensor], prefix: int | None = None) -> np.ndarray:
    """Counts of the upper bits, or of the lower bits among the scores whose upper bits are `prefix`."""
    left, taking = iter(scores), Lock()

    def count(_: int) -> np.ndarray:
        """Takes the next tensor for as long as there is one. Each thread has bins of its own."""
        counts = np.zeros(_BINS if prefix is None else 1 << _LOW_BITS, dtype=np.int64)
        while True:
            with taking:
                score = next(left, None)
                if score is not None and not bits.on_cpu(score):
                    _count_on_device(score, prefix, counts)  # one at a time, for the sake of memory
                    continue
            if score is None:
                return counts
            _count_on_cpu(score, prefix, counts)

    return np.sum(_in_threads(count, range(torch.get_num_threads())), axis=0)


def _count_on_device(score: Tensor, prefix: int | None, counts: np.ndarray) -> None:
    pattern = score.reshape(-1).view(torch.int32)
    for start in range(0, len(pattern), bits.DEVICE_CHUNK):
        part = pattern[start : start + bits.DEVICE_CHUNK]
        high = (part >> _LOW_BITS) & (_BINS - 1)
        values = high if prefix is None else part[high == prefix] & (len(counts) - 1)
        counts += torch.bincount(values, minlength=len(counts)).cpu().numpy()


def weighted_histogram(score: Tensor, weights: Sequence[Tensor]) -> np.ndarray:
    """(1 + len(weights), bins) in float64: how many scores there are by their upper bits, lowest first, and the sums of
    each of `weights` over them; without `EXCLUDED`."""
    pattern = score.reshape(-1).view(torch.int32)
    flat = [weight.reshape(-1) for weight in weights]
    sums = np.zeros((1 + len(flat), _BINS // 2))
    step = _CHUNK if bits.on_cpu(score) else bits.DEVICE_CHUNK
    for start in range(0, len(pattern), step):
        part = slice(start, start + step)
        kept = pattern[part] >= 0
        bins = (pattern[part] >> _LOW_BITS)[kept]
        for row, weight in enumerate((None, *flat)):
            values = None if weight is None else weight[part][kept].double()
            sums[row] += torch.bincount(bins, values, minlength=_BINS // 2).cpu().numpy()
    return sums


def _count_on_cpu(score: Tensor, prefix: int | None, counts: np.ndarray) -> None:
    bins, words = len(counts), _words(score)
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK]
        upper = chunk >> _LOW_BITS
        counts += np.bincount(upper if prefix is None else chunk[upper == prefix] & (bins - 1), minlength=bins)


def _words(score: Tensor) -> np.ndarray:
    return score.reshape(-1).numpy().view(np.uint32)


def _in_threads(work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """[work(item) ...], in as many threads as torch uses: NumPy counts, compares and packs in a single one."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def _apply(score: Tensor, threshold: int, ties: int | None) -> Tensor:
    """Packed mask of one tensor: all scores above the threshold and the first `ties` at it (None: all)."""
    if bits.on_cpu(score):
        words = _words(score).view(np.int32)  # signed: `EXCLUDED` lies below every score
        selected = words >= threshold if ties is None else words > threshold
        if ties:
            selected[np.flatnonzero(words == threshold)[:ties]] = True
        return bits.pack(torch.from_numpy(selected))
    pattern = score.reshape(-1).view(torch.int32)
    chosen = pattern >= threshold if ties is None else pattern > threshold
    if ties:
        chosen[(pattern == threshold).nonzero().squeeze(-1)[:ties]] = True
    return bits.pack(chosen)


def _select_rows(score: Tensor, density: float) -> Tensor:
    """bool (rows, columns): the same count in every row; ties go to the lowest column."""
    rows, columns = score.shape
    count = num_selected(density, columns)
    selected = torch.zeros(rows, columns, dtype=torch.bool, device=score.device)
    if count == 0:
        return selected
    step = max(1, (1 << 24) // columns)  # rows at a time, so that kthvalue's int64 indices stay small
    for start in range(0, rows, step):
        part = score[start : start + step]
        threshold = part.kthvalue(columns - count + 1, dim=1, keepdim=True).values
        above, equal = part > threshold, part == threshold
        missing = count - above.sum(1, keepdim=True)
        selected[start : start + step] = above | (equal & (equal.cumsum(1) <= missing))
    return selected


def _select_uneven_rows(score: Tensor, density: float) -> Tensor:
    """As `_select_rows`, where rows have different numbers of candidates."""
    candidates = score.view(torch.int32) != EXCLUDED
    counts = [num_selected(density, number) for number in candidates.sum(1).tolist()]
    order = torch.where(candidates, score, -1.0).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(score.shape[1], device=score.device) < torch.tensor(counts, device=score.device)[:, None]
    return torch.zeros_like(candidates).scatter_(1, order, chosen)
