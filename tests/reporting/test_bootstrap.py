"""Bootstrap intervals against a plain loop that draws and measures anew."""

import copy

import numpy as np
import pytest
from scipy.stats import hmean

from wagle_trainer.reporting.bootstrap import example_interval

PARTS = {
    "forget_Q_A_Prob": [("forget", "probability", lambda x: x)],
    "forget_truth_ratio": [("forget", "log_truth_ratio", lambda r: min(np.exp(r), np.exp(-r)))],
    "retain_Truth_Ratio": [("retain", "log_truth_ratio", lambda r: max(0.0, 1 - np.exp(r)))],
    "model_utility": [
        (name, column, function)
        for name in ("retain", "real_authors", "world_facts")
        for column, function in (
            ("probability", lambda x: x),
            ("rouge_l_recall", lambda x: x),
            ("log_truth_ratio", lambda r: max(0.0, 1 - np.exp(r))),
        )
    ],
}


@pytest.mark.parametrize("metric", PARTS)
def test_equals_a_plain_loop(make_result, metric):
    result = make_result(3, 0.5, 0.7)
    examples, random = result["per_example"], np.random.default_rng(1)
    values = {
        (name, column): np.array([function(x) for x in examples[name][column]])
        for name, column, function in PARTS[metric]
    }

    def drawn():
        sizes = {name: len(column) for (name, _), column in values.items()}
        rows = {name: random.integers(0, size, size) for name, size in sizes.items()}
        return hmean([column[rows[name]].mean() for (name, _), column in values.items()])

    expected = np.percentile([drawn() for _ in range(2500)], [2.5, 97.5])
    found = example_interval(result, metric)
    assert found.mean == result[metric]
    width = expected[1] - expected[0]
    assert found.low == pytest.approx(expected[0], abs=0.12 * width)
    assert found.high == pytest.approx(expected[1], abs=0.12 * width)
    assert found == example_interval(result, metric), "seeded"


def test_without_spread(make_result):
    result = make_result(3)
    result["per_example"]["forget"]["probability"] = [0.25] * 12
    result["forget_Q_A_Prob"] = 0.25
    assert example_interval(result, "forget_Q_A_Prob") == (0.25, 0.25, 0.25)


def test_numbers_without_an_interval(make_result):
    result = make_result(3) | {"forget_quality": 0.2}
    assert example_interval(result, "forget_quality") == (0.2, None, None)
    one = make_result(3, number=1)
    assert example_interval(one, "forget_Q_A_Prob") == (one["forget_Q_A_Prob"], None, None)
    del result["per_example"]
    assert example_interval(result, "forget_Q_A_Prob") == (result["forget_Q_A_Prob"], None, None)


@pytest.mark.parametrize("metric", ["forget_Q_A_ROUGE", "model_utility"])
def test_a_number_that_its_examples_contradict(make_result, metric):
    result = copy.deepcopy(make_result(3))
    result[metric] += 0.01
    with pytest.raises(ValueError, match=f"{metric} is .*, but its examples say .*: the result was altered"):
        example_interval(result, metric)
