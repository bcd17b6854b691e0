import math
import zlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, mannwhitneyu

from wagle_trainer.evaluation import (
    answer_probability,
    exact_memorization,
    extraction_strength,
    forget_quality,
    log_truth_ratio,
    min_k,
    min_k_plus_plus,
    model_utility,
    privacy_leakage,
    probability_with_options,
    reference_score,
    roc_auc,
    rouge_l_f1,
    rouge_l_recall,
    truth_ratio,
    zlib_score,
)

log_probs = st.floats(-20, 0)
text_of_few_words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=5).map(" ".join)
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


@settings(deadline=None)  # the first score imports nltk
@given(st.lists(st.tuples(text_of_few_words, text_of_few_words), min_size=1, max_size=5))
def test_rouge_l_f1_is_its_formula(pairs):
    """From the longest common subsequence, found by trying all."""
    expected = []
    for said, true in pairs:
        one, other = said.split(), true.split()
        both = {part for n in range(1, len(one) + 1) for part in combinations(one, n)}
        both &= {part for n in range(1, len(other) + 1) for part in combinations(other, n)}
        longest = max(map(len, both), default=0)
        expected.append(2 * longest / (len(one) + len(other)) if longest else 0.0)
    predictions, references = zip(*pairs, strict=True)
    np.testing.assert_allclose(rouge_l_f1(predictions, references), expected)


def test_rouge_l_f1_with_stems():
    assert rouge_l_f1(["he jumped"], ["she jumps"]).tolist() == [0.0]
    assert rouge_l_f1(["he jumped"], ["she jumps"], use_stemmer=True).tolist() == [0.5]


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


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_exact_memorization_is_the_share_of_right_tokens(flags):
    assert exact_memorization(flags) == pytest.approx(sum(flags) / len(flags))


tokens = st.lists(st.tuples(log_probs, log_probs, st.floats(0, 5)), min_size=1, max_size=12)


@given(tokens, st.floats(0.01, 1))
def test_min_k_is_the_mean_of_the_least_likely(rows, k):
    values, means, stds = zip(*rows, strict=True)
    count = max(1, int(len(values) * k))
    assert min_k(values, k) == pytest.approx(-sum(sorted(values)[:count]) / count)
    standardised = [(x - mean) / max(std, 1e-3) for x, mean, std in rows]
    assert min_k_plus_plus(values, means, stds, k) == pytest.approx(-sum(sorted(standardised)[:count]) / count)


def test_min_k_by_hand():
    assert min_k([-1.0, -5.0, -2.0, -4.0, -3.0], k=0.4) == pytest.approx(4.5)
    assert min_k([-1.0, -5.0], k=0.2) == 5.0  # at least one token
    # mean and variance of log p under p = (0.5, 0.25, 0.25), in units of log 2: -1.5 and 0.25
    assert min_k_plus_plus([-math.log(2)], [-1.5 * math.log(2)], [0.5 * math.log(2)]) == pytest.approx(-1.0)


def test_zlib_and_reference_by_hand():
    text = "never never never never näver"
    assert zlib_score(3.0, text) == 3.0 / len(zlib.compress(text.encode("utf-8")))
    np.testing.assert_allclose(reference_score([2.0, 1.0], [0.5, 3.0]), [1.5, -2.0])


some = st.lists(st.integers(0, 4), min_size=1, max_size=10)


@given(some, some)
def test_roc_auc_counts_pairs(members, others):
    pairs = [1.0 if a < b else 0.5 if a == b else 0.0 for a in members for b in others]
    assert roc_auc(members, others) == pytest.approx(sum(pairs) / len(pairs))
    assert roc_auc(members, others) + roc_auc(others, members) == pytest.approx(1)


def test_roc_auc_is_the_statistic_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=30), rng.normal(0.5, size=20)
    assert roc_auc(members, others) == pytest.approx(mannwhitneyu(others, members).statistic / 600)
    assert roc_auc([1.0, 2.0], [3.0]) == 1.0


def test_privacy_leakage_by_hand():
    # MUSE's AUC is 1 minus ours: (0.2 - 0.5) / 0.5 and (0.8 - 0.5) / 0.5
    assert privacy_leakage(0.8, 0.5) == pytest.approx(-60)
    assert privacy_leakage(0.2, 0.5) == pytest.approx(60)
    assert privacy_leakage(0.62, 0.62) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_memorization([]), "no exact memorization"),
        (lambda: min_k([]), "token_log_probs is empty"),
        (lambda: min_k([-1.0], k=0), r"k must be in \(0, 1\], not 0"),
        (lambda: min_k([-1.0], k=1.5), "not 1.5"),
        (lambda: min_k_plus_plus([-1.0], [-1.0, -2.0], [1.0]), "token_log_probs has 1 entries and mean has 2"),
        (lambda: min_k_plus_plus([-1.0], [-1.0], [math.inf]), r"std\[0\] is not finite"),
        (lambda: zlib_score(math.nan, "text"), r"nll\[0\] is not finite"),
        (lambda: reference_score([1.0], [1.0, 2.0]), "nll has 1 entries and reference_nll has 2"),
        (lambda: roc_auc([], [1.0]), "members is empty"),
        (lambda: roc_auc([1.0], []), "non_members is empty"),
        (lambda: privacy_leakage(1.1, 0.5), "auc must be in"),
        (lambda: privacy_leakage(0.5, 1.0), "reference_auc is 1.*differ in more than membership"),
        (lambda: answer_probability([]), "mean_log_probs is empty"),
        (lambda: answer_probability([-1.0, math.nan]), r"mean_log_probs\[1\] is not finite"),
        (lambda: answer_probability([[-1.0]]), "flat list"),
        (lambda: probability_with_options([-1.0], [[-1.0], [-2.0]]), "correct has 1 entries and wrong has 2"),
        (lambda: log_truth_ratio([-1.0, -1.0], [[-1.0], []]), r"wrong\[1\] is empty"),
        (lambda: truth_ratio([], [], aggregation="true_better"), "correct is empty"),
        (lambda: extraction_strength([]), "is_top1 is empty"),
        (lambda: rouge_l_f1(["a"], []), "predictions has 1 entries and references has 0"),
        (lambda: rouge_l_recall(["a"], []), "predictions has 1 entries and references has 0"),
        (lambda: rouge_l_recall([], []), "predictions and references are empty"),
        (lambda: forget_quality([0.1], []), "reference_log_truth_ratios is empty"),
        (lambda: model_utility([]), "values is empty"),
    ],
)
def test_bad_input_says_which(call, message):
    with pytest.raises(ValueError, match=message):
        call()
