import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_trainer.evaluation import request_curve

numbers = st.floats(-10, 10)


@settings(deadline=None)  # a busy machine
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6), st.data())
def test_slope_is_that_of_the_least_squares_line(pairs, data):
    steps = data.draw(st.lists(st.floats(0.5, 5), min_size=len(pairs), max_size=len(pairs)))
    x = np.cumsum(steps)
    results = [{"kept": kept, "lost": lost, "per_example": {}, "settings": {}} for kept, lost in pairs]
    found = request_curve(results, x=list(x))
    for column, name in enumerate(("kept", "lost")):
        values = [pair[column] for pair in pairs]
        centred = x - x.mean()
        assert found["curve"][name] == values
        assert found["slope"][name] == pytest.approx(centred @ values / (centred @ centred), abs=1e-9)
        assert found["change"][name] == values[-1] - values[0]
    assert found["x"] == list(x)


def test_metrics_that_not_all_results_have_are_left_out():
    results = [{"a": 1.0, "b": 0.5, "n": 3}, {"a": 2.0, "n": 3, "b": None}, {"a": 4.0, "n": 3}]
    found = request_curve(results)
    assert found["x"] == [1, 2, 3]
    assert found["curve"] == {"a": [1, 2, 4], "n": [3, 3, 3]}
    assert request_curve(results, metrics=["a"])["change"] == {"a": 3}


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([{"a": 1.0}], {}, "at least two results, not 1"),
        ([{"a": 1.0}] * 2, {"x": [1]}, "x has 1 entries and there are 2 results"),
        ([{"a": 1.0}] * 3, {"x": [1, 3, 3]}, r"must increase.*\[1.0, 3.0, 3.0\]"),
        ([{"a": 1.0}, {"b": 1.0}], {}, "no metric that all results have"),
        ([{"a": 1.0}, {"b": 1.0}], {"metrics": ["a"]}, "Result 1 has no number 'a'"),
    ],
)
def test_what_makes_no_curve(results, options, message):
    with pytest.raises(ValueError, match=message):
        request_curve(results, **options)
