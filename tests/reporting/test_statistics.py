"""Intervals, tests and Holm's correction against scipy's other ways to the same numbers, and against brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from wagle_trainer.reporting.statistics import compare, holm, mean, paired_p_value, t_interval

NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@given(values=NUMBERS)
def test_interval_is_that_of_the_one_sample_t_test(values):
    assume(np.std(values) > 1e-6)
    found = t_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found == pytest.approx((np.mean(values), expected.low, expected.high))


def test_interval_by_hand():
    # sd = 1, n = 3, and 4.3027 is the 97.5 % quantile of t with two degrees of freedom.
    half = 4.302652729911275 / math.sqrt(3)
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half))
    assert t_interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1, 0.1))
    assert t_interval([0.5]) == (0.5, None, None)


@given(values=NUMBERS, data=st.data())
def test_paired_test_is_the_t_test_of_the_differences(values, data):
    other = data.draw(st.lists(st.floats(-1e3, 1e3), min_size=len(values), max_size=len(values)))
    differences = np.subtract(values, other)
    assume(np.std(differences) > 1e-6)
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(len(values)))
    expected = 2 * stats.t.sf(abs(t), len(values) - 1)
    assert paired_p_value(values, other) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_paired_test_without_spread():
    assert paired_p_value([0.3, 0.4, 0.5], [0.3, 0.4, 0.5]) == 1.0
    assert paired_p_value([0.3, 0.4, 0.5], [0.2, 0.3, 0.4]) is None
    values = {"wagle": [0.5, 0.5], "snip": [0.5, 0.6], "random": [0.4, 0.4]}
    pairs = [("wagle", "random"), ("snip", "random")]
    same, tested = compare(values, pairs, family="f", metric="m", better="higher")
    assert same.sentence().startswith("wagle against random on m: not tested, all 2 seeds differ by the same (")
    assert tested.corrected_p_value == tested.uncorrected_p_value, "alone in its family"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis is rejected where Bonferroni rejects every set of hypotheses that it belongs to."""
    indices = range(len(p_values))
    for index, found in zip(indices, holm(p_values), strict=True):
        sets = [s for size in range(1, len(p_values) + 1) for s in combinations(indices, size) if index in s]
        assert found == pytest.approx(max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets))


def test_mean_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="no values"):
        mean([])
    with pytest.raises(ValueError, match="Value 1 of 2 is nan"):
        mean([1.0, math.nan])


# What the seeds support

VALUES = {
    "wagle": [0.80, 0.83, 0.81],
    "close": [0.60, 0.70, 0.55],
    "random": [0.600, 0.611, 0.619],
}


def compared(better, values=VALUES):
    pairs = [("wagle", "random"), ("close", "random")]
    return compare(values, pairs, family="random masks", metric="utility", better=better)


def test_sentences():
    one, other = compared("higher")
    raw = [paired_p_value(VALUES[label], VALUES["random"]) for label in ("wagle", "close")]
    assert one.corrected_p_value == pytest.approx(2 * raw[0])
    assert other.corrected_p_value == pytest.approx(raw[1])
    interval = t_interval(np.subtract(VALUES["wagle"], VALUES["random"]).tolist())
    assert one.sentence() == (
        f"wagle is better than random on utility (difference +0.203, 95 % interval {interval.low:+.3f} to "
        f"{interval.high:+.3f}; p = {2 * raw[0]:.2g}, 3 seeds)."
    )
    assert other.sentence("model utility").startswith(
        f"close against random on model utility: no difference found (p = {raw[1]:.2g}, 3 seeds; difference +0.007"
    )
    assert [c.verdict for c in compared("lower")] == ["worse", "no difference found"]
    assert "worse than random" in compared("lower")[0].sentence()


def test_the_correction_can_take_a_difference_away():
    values = {"a": [0.0, 0.1, 0.05, 0.02], "random": [0.2, 0.4, 0.5, 0.2]}
    [alone] = compare(values, [("a", "random")], family="f", metric="m", better="higher")
    assert alone.verdict == "worse"
    assert alone.corrected_p_value == alone.uncorrected_p_value
    many = compare(values, [("a", "random")] * 20, family="f", metric="m", better="higher")
    assert {c.verdict for c in many} == {"no difference found"}


def test_one_seed_is_not_tested():
    comparisons = compared("higher", {label: values[:1] for label, values in VALUES.items()})
    assert [c.verdict for c in comparisons] == ["not tested"] * 2
    assert comparisons[0].sentence() == "wagle against random on utility: not tested, 1 seed (difference +0.200)."


def test_unequal_seeds_and_unknown_labels():
    with pytest.raises(ValueError, match="'wagle' has 3 seeds and 'random' has 2"):
        compared("higher", VALUES | {"random": [0.1, 0.2]})
    with pytest.raises(ValueError, match="No results are labelled 'random'; there are 'wagle'"):
        compare({"wagle": [1.0]}, [("wagle", "random")], family="f", metric="m", better="lower")
    with pytest.raises(ValueError, match="two or more pairs; there are 1 and 2"):
        paired_p_value([1.0], [1.0, 2.0])
