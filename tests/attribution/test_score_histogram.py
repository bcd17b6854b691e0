"""The histogram of the scores against counting one score at a time."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wagle_trainer import WeightMask, attribute
from wagle_trainer.attribution.score_histogram import ScoreHistogram
from wagle_trainer.attribution.selection import exclude, find_threshold, select
from wagle_trainer.masking import bits

TINY = 2.0**-134  # below it, a score counts as zero
VALUES = st.one_of(
    st.sampled_from([0.0, 1e-45, 2.0**-127, 1.0, 1.5, 2.0, float(np.finfo(np.float32).max)]),
    st.floats(0, float(np.finfo(np.float32).max), width=32),
)


def exponent(value: float) -> int | None:
    """floor(log2(value)); subnormal numbers share -127, and None stands for zero."""
    return None if value < TINY else max(math.frexp(value)[1] - 1, -127)


def by_hand(scores, masks):
    counts, selected = Counter(), Counter()
    for score, mask in zip(scores, masks, strict=True):
        counts.update(exponent(value) for value in score.flatten().tolist())
        selected.update(exponent(value) for value in score[mask].tolist())
    return counts, selected


def assert_equal(histogram: dict, counts: Counter, selected: Counter):
    assert (histogram["zero_scores"], histogram["zero_selected"]) == (counts.pop(None, 0), selected.pop(None, 0))
    for key, expected in (("scores", counts), ("selected", selected)):
        found = {histogram["first_exponent"] + i: number for i, number in enumerate(histogram[key]) if number}
        assert found == {e: n for e, n in expected.items() if n}
    if counts:
        assert histogram["scores"][0] and histogram["scores"][-1], "nothing empty at the ends"


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
@settings(max_examples=35, deadline=None)
@given(
    arrays=st.lists(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=VALUES), min_size=1
    ),
    density=st.floats(0, 1, exclude_min=True),
)
def test_counts_every_score_once(scope, arrays, density):
    scores = {str(index): torch.from_numpy(array) for index, array in enumerate(arrays)}
    histogram = ScoreHistogram()
    packed = select({n: s.clone() for n, s in scores.items()}, density, scope, histogram=histogram)
    masks = [bits.unpack(packed[name], scores[name].shape) for name in scores]
    found = histogram.as_dict()
    assert_equal(found, *by_hand(scores.values(), masks))
    chosen = [value for score, mask in zip(scores.values(), masks, strict=True) for value in score[mask].tolist()]
    assert found["threshold"] == (min(chosen) if scope == "global" and chosen else None)


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), density=st.floats(0.01, 1))
def test_weights_that_are_no_candidates_are_not_counted(scope, data, density):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    score = torch.from_numpy(data.draw(hnp.arrays(np.float32, shape, elements=VALUES)))
    out = torch.from_numpy(data.draw(hnp.arrays(bool, shape)))
    histogram = ScoreHistogram()
    packed = select({"a": exclude(score, out)}, density, scope, excluded={"a": int(out.sum())}, histogram=histogram)
    assert_equal(histogram.as_dict(), *by_hand([score[~out]], [bits.unpack(packed["a"], shape)[~out]]))


@settings(max_examples=25, deadline=None)
@given(
    values=hnp.arrays(np.float32, st.integers(1, 50), elements=VALUES), share=st.floats(0, 1), cut=st.integers(0, 50)
)
def test_adds_up_over_shards(values, share, cut):
    shards = [torch.from_numpy(part.copy()) for part in np.split(values, [min(cut, len(values))])]
    count = int(share * len(values))
    whole, sharded = ScoreHistogram(), ScoreHistogram()
    find_threshold([torch.from_numpy(values)], count, histogram=whole)
    # What the other process counts, in the order in which counts are requested: the upper bits, the lower ones.
    other: list[torch.Tensor] = []
    find_threshold([torch.from_numpy(values)], count, lambda counts: other.append(counts.clone()))

    def reduce(counts):
        counts.copy_(other.pop(0))

    if count:
        find_threshold([shards[0]], count, reduce, sharded)
        assert sharded.as_dict() == whole.as_dict()


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_is_kept_with_the_mask(make_llama, make_examples, pad_batches, tmp_path, scope):
    model = make_llama()
    forget, retain = (pad_batches(make_examples(6, seed=seed), 3) for seed in (1, 2))
    mask = attribute(model, forget, retain, density=0.1, scope=scope, progress=False)
    histogram = mask.info.score_histogram
    assert sum(histogram["scores"]) + histogram["zero_scores"] == mask.num_weights
    assert sum(histogram["selected"]) + histogram["zero_selected"] == mask.num_selected
    mask.save_pretrained(tmp_path)
    assert WeightMask.from_pretrained(tmp_path).info == mask.info

    # A file from before there were histograms.
    config = json.loads((tmp_path / "mask_config.json").read_text())
    del config["score_histogram"], config["config_digest"]
    (tmp_path / "mask_config.json").write_text(json.dumps(config))
    old = WeightMask.from_pretrained(tmp_path, model=model)
    assert old.info.score_histogram is None
    assert old == mask
