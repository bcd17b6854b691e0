from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation import generate_samples
from wagle_trainer.evaluation.attacks import run_attacks
from wagle_trainer.evaluation.attacks.sampling import leak_at_k

scores = st.lists(st.floats(0, 1), min_size=1, max_size=7)


@settings(deadline=None)
@given(scores)
def test_leak_at_k_is_the_mean_over_all_sets_of_k(values):
    expected = [np.mean([max(part) for part in combinations(values, k)]) for k in range(1, len(values) + 1)]
    found = [float(leak_at_k(values, k)) for k in range(1, len(values) + 1)]
    assert found == pytest.approx(expected, abs=1e-9)
    assert all(b >= a - 1e-9 for a, b in pairwise(found))


def test_leak_at_k_of_several_questions_and_of_many_samples():
    table = np.random.default_rng(0).random((3, 6))
    assert leak_at_k(table, 4) == pytest.approx([float(leak_at_k(row, 4)) for row in table])
    assert leak_at_k(np.ones(2000), 1000) == pytest.approx(1.0)  # no binomial overflows
    for k in (0, 7):
        with pytest.raises(ValueError, match="k must be from 1 to the number of samples, 6"):
            leak_at_k(table, k)


def test_attack_is_monotone_in_k_and_equals_a_plain_loop(before, after, tokenizer, rows):
    result = run_attacks(
        before,
        after,
        tokenizer,
        rows,
        ["sampling"],
        options={"sampling": {"k": [1, 4, 2], "samples": 6, "max_new_tokens": 12}},
        seed=3,
        progress=False,
    )["sampling"]
    values = [point["forget"] for point in result["points"]]
    assert [point["x"] for point in result["points"]] == [1, 2, 4]
    assert values == sorted(values)
    assert values[-1] > values[0]
    assert result["recovered"] == result["points"][-1]["recovered"]

    qa, scorer = QAFormat.for_tokenizer(tokenizer), RougeScorer(["rougeL"], use_stemmer=True)
    texts = generate_samples(
        after,
        tokenizer,
        [qa.prompt_ids(row["question"]) for row in rows],
        num_samples=6,
        max_new_tokens=12,
        seed=3,
        progress=False,
    )
    best = 0.0
    for row, draws in zip(rows, texts, strict=True):
        own = [scorer.score(row["answer"], text)["rougeL"].recall for text in draws]
        best += np.mean([max(pair) for pair in combinations(own, 2)]) / len(rows)
    assert values[1] == pytest.approx(best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": [0]}, "k must be whole numbers"),
        ({"k": [4], "samples": 3}, "needs at least as many samples, not 3"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"top_p": 1.5}, "top_p in"),
    ],
)
def test_options_out_of_range(before, after, tokenizer, rows, options, message):
    with pytest.raises(ValueError, match=message):
        run_attacks(
            before,
            after,
            tokenizer,
            rows,
            ["sampling"],
            options={"sampling": options},
            measure=lambda model, *_: 1.0 if model is before else 0.0,
            progress=False,
        )
