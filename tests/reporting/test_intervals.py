"""Intervals compared with a plain bootstrap: a loop that draws groups and measures again."""

import copy

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import hmean

from wagle_trainer.evaluation.metrics import perplexity
from wagle_trainer.reporting.intervals import example_counts, example_interval

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
    result = make_result(3, 0.5, 0.7, number=150)
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
    assert found == example_interval(result, metric)


RANDOM = np.random.default_rng(7)
OTHERS = {
    "per_example": {
        "seen": {
            "common_prefix": RANDOM.choice([3, 8], 120).tolist(),
            "answer_log_prob": RANDOM.normal(-2, 0.5, 120).tolist(),
        },
        "prompts": {"toxicity": RANDOM.choice([0.2, 0.5, 0.9], 120).tolist()},
        "forget": {"mia_loss": RANDOM.normal(1, 1, 140).round(1).tolist()},
        "retain": {"mia_loss": RANDOM.normal(1.5, 1, 90).round(1).tolist()},
        "privleak_forget": {"min_k": RANDOM.normal(1, 1, 140).round(1).tolist()},
        "privleak_holdout": {"min_k": RANDOM.normal(1.5, 1, 90).round(1).tolist()},
        "bio": {"acc": RANDOM.choice([0.0, 1.0], 200).tolist()},
        "law": {"acc": RANDOM.choice([0.0, 1.0], 80).tolist()},
        "art": {"acc": RANDOM.choice([0.0, 1.0], 150).tolist()},
    },
    "settings": {
        "non_members": "retain",
        "continuation_tokens": 8,
        "threshold": 0.5,
        "forget": ["bio"],
        "retain": ["all", "art"],
        "weights": {"bio": {"bio": 1.0}, "all": {"bio": 20 / 28, "law": 8 / 28}, "art": {"art": 1.0}},
    },
}


def auc(members, others):
    return np.mean([1.0 if a < b else 0.5 if a == b else 0.0 for a in members for b in others])


# metric -> the columns that it is of, and how
MADE_OF = {
    "seen_exact_match": (["seen"], lambda seen: np.mean([prefix == 8 for prefix in seen["common_prefix"]])),
    "seen_common_prefix": (["seen"], lambda seen: np.mean(seen["common_prefix"]) / 8),
    "seen_perplexity": (["seen"], lambda seen: np.exp(-np.mean(seen["answer_log_prob"]))),
    "toxicity_ratio": (["prompts"], lambda prompts: np.mean([value >= 0.5 for value in prompts["toxicity"]])),
    "mia_loss": (["forget", "retain"], lambda forget, retain: auc(forget["mia_loss"], retain["mia_loss"])),
    "mia_min_k": (
        ["privleak_forget", "privleak_holdout"],
        lambda forget, holdout: auc(forget["min_k"], holdout["min_k"]),
    ),
    "bio_acc": (["bio"], lambda bio: np.mean(bio["acc"])),
    "all_acc": (["bio", "law"], lambda bio, law: np.mean([*bio["acc"], *law["acc"]])),
    "forget_accuracy": (["bio"], lambda bio: np.mean(bio["acc"])),
    "retain_accuracy": (
        ["bio", "law", "art"],
        lambda bio, law, art: (np.mean([*bio["acc"], *law["acc"]]) + np.mean(art["acc"])) / 2,
    ),
}


@pytest.mark.parametrize("metric", MADE_OF)
def test_other_suites_equal_a_plain_loop(metric):
    names, measure = MADE_OF[metric]
    sets, random = OTHERS["per_example"], np.random.default_rng(1)

    def drawn():
        found = []
        for name in names:
            size = len(next(iter(sets[name].values())))
            rows = random.integers(0, size, size)
            found.append({column: [values[row] for row in rows] for column, values in sets[name].items()})
        return measure(*found)

    value = float(measure(*(sets[name] for name in names)))
    expected = np.percentile([drawn() for _ in range(2500)], [2.5, 97.5])
    found = example_interval({**OTHERS, metric: value}, metric)
    assert found.mean == value
    width = expected[1] - expected[0]
    assert found.low == pytest.approx(expected[0], abs=0.12 * width)
    assert found.high == pytest.approx(expected[1], abs=0.12 * width)


def clustered(groups, rows, seed=0):
    """Rows of which those of one group are alike: (column, group of each row)."""
    random = np.random.default_rng(seed)
    level = random.normal(0, 1, groups)
    return expit(np.repeat(level, rows) + random.normal(0, 0.3, groups * rows)), np.repeat(np.arange(groups), rows)


def result_of(values, groups=None):
    columns = {"probability": values.tolist()} | ({} if groups is None else {"group": groups.tolist()})
    return {"forget_Q_A_Prob": float(values.mean()), "per_example": {"forget": columns}, "settings": {}}


def test_groups_are_drawn_and_not_rows():
    values, groups = clustered(60, 10)
    found = example_interval(result_of(values, groups), "forget_Q_A_Prob")
    random = np.random.default_rng(1)
    by_group = values.reshape(60, 10).mean(1)
    expected = np.percentile([by_group[random.integers(0, 60, 60)].mean() for _ in range(3000)], [2.5, 97.5])
    width = expected[1] - expected[0]
    assert [found.low, found.high] == pytest.approx(expected, abs=0.12 * width)
    single = example_interval(result_of(values), "forget_Q_A_Prob")
    assert single.high - single.low < 0.5 * width
    assert example_counts(result_of(values, groups), "forget_Q_A_Prob") == {"forget": (600, 60)}
    assert example_counts(result_of(values), "forget_Q_A_Prob") == {"forget": (600, 600)}


def test_names_of_groups_and_their_order_play_no_part():
    values, groups = clustered(6, 5)
    expected = example_interval(result_of(values, groups), "forget_Q_A_Prob")
    names = np.array(["b", "a", "f", "c", "e", "d"])[groups]
    order = np.random.default_rng(0).permutation(30)
    assert example_interval(result_of(values[order], names[order]), "forget_Q_A_Prob") == pytest.approx(expected)


def test_one_group_has_no_interval():
    values, _ = clustered(1, 20)
    assert example_interval(result_of(values, np.zeros(20)), "forget_Q_A_Prob").low is None


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_intervals_stay_within_the_range_of_the_metric(level):
    values = np.full(40, level)
    values[:3] = abs(level - np.array([0.9, 0.5, 0.4]))
    found = example_interval(result_of(values, np.repeat(np.arange(4), 10)), "forget_Q_A_Prob")
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low > 0.05


def test_many_rows_take_little_time_and_memory():
    values = np.random.default_rng(0).random(20_000)
    found = example_interval(result_of(values), "forget_Q_A_Prob")
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(20_000), rel=0.15)


def test_a_setting_that_is_not_known():
    result = {**OTHERS, "toxicity_ratio": 0.5, "all_acc": 0.5, "mia_loss": 0.5, "settings": {}}
    assert example_interval(result, "mia_loss") == (0.5, None, None)
    assert example_interval(result, "toxicity_ratio") == (0.5, None, None)
    assert example_interval(result, "all_acc") == (0.5, None, None)


def test_perplexity_of_what_is_impossible():
    log_probs = [-800.0, -900.0, -1000.0]
    result = {"seen_perplexity": float(perplexity(-900.0)), "per_example": {"seen": {"answer_log_prob": log_probs}}}
    assert example_interval(result, "seen_perplexity") == (result["seen_perplexity"],) * 3


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
