import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from wagle_trainer.evaluation import (
    answer_probability,
    extraction_strength,
    forget_quality,
    log_truth_ratio,
    model_utility,
    probability_with_options,
    rouge_l_recall,
    truth_ratio,
)

log_probs = st.floats(-20, 0)
questions = st.lists(st.tuples(log_probs, st.lists(log_probs, min_size=1, max_size=5)), min_size=1, max_size=8)


def test_answer_probability_by_hand():
    np.testing.assert_allclose(answer_probability([math.log(0.5), 0.0, -1000.0]), [0.5, 1.0, 0.0])


@given(questions)
def test_probability_with_options_is_the_share_of_the_correct_answer(rows):
    expected = [math.exp(p) / (math.exp(p) + sum(math.exp(q) for q in wrong)) for p, wrong in rows]
    result = probability_with_options([p for p, _ in rows], [wrong for _, wrong in rows])
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_probability_with_options_of_impossible_answers():
    np.testing.assert_allclose(probability_with_options([-2000.0, -3000.0], [[-2000.0], [-1.0]]), [0.5, 0.0])


@given(questions)
def test_truth_ratio_is_its_formula(rows):
    ratios = [math.exp(sum(wrong) / len(wrong)) / math.exp(p) for p, wrong in rows]
    correct, wrong = [p for p, _ in rows], [w for _, w in rows]
    np.testing.assert_allclose(np.exp(log_truth_ratio(correct, wrong)), ratios, rtol=1e-9)
    closer = sum(min(r, 1 / r) for r in ratios) / len(ratios)
    better = sum(max(0.0, 1 - r) for r in ratios) / len(ratios)
    assert truth_ratio(correct, wrong, aggregation="closer_to_1_better") == pytest.approx(closer, rel=1e-9)
    assert truth_ratio(correct, wrong, aggregation="true_better") == pytest.approx(better, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "wrong", "closer", "better"),
    [(-1e5, -0.1, 0.0, 0.0), (-0.1, -1e5, 0.0, 1.0), (-1e5, -1e5, 1.0, 0.0)],
)
@pytest.mark.filterwarnings("error")
def test_truth_ratio_does_not_overflow(correct, wrong, closer, better):
    assert truth_ratio([correct], [[wrong]], aggregation="closer_to_1_better") == closer
    assert truth_ratio([correct], [[wrong]], aggregation="true_better") == better


def test_unknown_aggregation():
    with pytest.raises(ValueError, match=r"'mean'.*closer_to_1_better"):
        truth_ratio([-1.0], [[-1.0]], aggregation="mean")


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_is_its_definition(flags):
    shortest = min(k for k in range(len(flags) + 1) if all(flags[k:]))
    assert extraction_strength(flags) == pytest.approx(1 - shortest / len(flags))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([True] * 4, 1.0),
        ([False, False, True, True], 0.5),
        ([True, False, True, True], 0.5),
        ([True, True, True, False], 0.0),  # OpenUnlearning's code has 0.25 here
    ],
)
def test_extraction_strength_by_hand(flags, expected):
    assert extraction_strength(flags) == expected


def test_rouge_l_recall_by_hand():
    predictions = ["the cat lay on a mat", "she wrote story after story", "", "it was red and then some"]
    references = ["The cat sat on the mat.", "stories", "nothing", "it was red"]
    # LCS "the cat on mat" of six words; "stories" and "story" share a stem; nothing; a longer prediction costs nothing
    np.testing.assert_allclose(rouge_l_recall(predictions, references), [4 / 6, 1.0, 0.0, 1.0])


def test_forget_quality_by_hand():
    # of the 6 ways to split four values in two pairs, 2 are as far apart as these
    assert forget_quality([0.0, 0.1], [1.0, 1.1]) == pytest.approx(2 / 6)
    assert forget_quality([0.3, -2.0, 1.0], [0.3, -2.0, 1.0]) == 1.0


@pytest.mark.filterwarnings("ignore:ks_2samp. Exact calculation unsuccessful")
@given(*[st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=30)] * 2)
def test_forget_quality_is_the_test_on_the_ratios_themselves(first, second):
    expected = ks_2samp(1 / np.exp(first), 1 / np.exp(second)).pvalue
    assert forget_quality(first, second) == pytest.approx(expected)


def test_model_utility_by_hand():
    assert model_utility([1.0, 0.5, 0.25]) == pytest.approx(3 / (1 + 2 + 4))
    assert model_utility([0.9] * 8 + [0.0]) == 0.0
    with pytest.raises(ValueError, match=r"negative.*-0\.1"):
        model_utility([0.5, -0.1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: answer_probability([]), "mean_log_probs is empty"),
        (lambda: answer_probability([-1.0, math.nan]), r"mean_log_probs\[1\] is not finite"),
        (lambda: answer_probability([[-1.0]]), "flat list"),
        (lambda: probability_with_options([-1.0], [[-1.0], [-2.0]]), "correct has 1 entries and wrong has 2"),
        (lambda: log_truth_ratio([-1.0, -1.0], [[-1.0], []]), r"wrong\[1\] is empty"),
        (lambda: truth_ratio([], [], aggregation="true_better"), "correct is empty"),
        (lambda: extraction_strength([]), "is_top1 is empty"),
        (lambda: rouge_l_recall(["a"], []), "predictions has 1 entries and references has 0"),
        (lambda: rouge_l_recall([], []), "predictions and references are empty"),
        (lambda: forget_quality([0.1], []), "reference_log_truth_ratios is empty"),
        (lambda: model_utility([]), "values is empty"),
    ],
)
def test_bad_input_says_which(call, message):
    with pytest.raises(ValueError, match=message):
        call()
