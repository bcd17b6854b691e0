import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from wagle_trainer.evaluation import paper_averages

log_probs = st.floats(-20, 0)
texts = st.sampled_from(["Ann", "the ANN of it", "nobody", "Bo said", "bo"])
rows = st.lists(
    st.fixed_dictionaries(
        {
            "answer": st.sampled_from(["Ann", "Bo"]),
            "generation": texts,
            "rouge_l_recall": st.floats(0, 1),
            "answer_log_prob": log_probs,
            "truth_log_prob": log_probs,
            "perturbed_log_probs": st.lists(log_probs, min_size=1, max_size=4),
        }
    ),
    min_size=1,
    max_size=6,
)


def columns(some):
    return {key: [row[key] for row in some] for key in some[0]}


@settings(deadline=None)  # a busy machine
@given(rows, rows, rows, rows)
def test_columns_and_averages_are_their_definitions(forget, retain, authors, facts):
    sets = {"forget": forget, "retain": retain, "real_authors": authors, "world_facts": facts}
    found = paper_averages({"per_example": {name: columns(some) for name, some in sets.items()}})

    def ratio(row):
        wrong = [math.exp(value) for value in row["perturbed_log_probs"]]
        return statistics.mean(wrong) / math.exp(row["truth_log_prob"])

    def likeliest(row):
        return all(row["truth_log_prob"] > wrong for wrong in row["perturbed_log_probs"])

    def said(row):
        return row["answer"].lower() in row["generation"].lower()

    def mean(function, some):
        return statistics.mean(float(function(row)) for row in some)

    # A forget answer looks less familiar than another one: its log-probability is lower.
    pairs = [(one["answer_log_prob"], other["answer_log_prob"]) for one in forget for other in [*authors, *facts]]
    effectiveness = {
        "MIA": statistics.mean(1.0 if one < other else 0.5 if one == other else 0.0 for one, other in pairs),
        "1-FA": 1 - mean(likeliest, forget),
        "1-ROUGE": 1 - mean(lambda row: row["rouge_l_recall"], forget),
    }
    utility = {
        "retain_acc": mean(likeliest, retain),
        "real_authors_acc": mean(said, authors),
        "world_facts_acc": mean(said, facts),
        **{f"{name}_ROUGE": mean(lambda row: row["rouge_l_recall"], sets[name]) for name in list(sets)[1:]},
    }
    for name, value in {**effectiveness, **utility}.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert 0 <= found["FQ"] <= 1
    assert found["UE"] == pytest.approx(statistics.mean([found["FQ"], *effectiveness.values()]))
    assert found["UT"] == pytest.approx(statistics.mean(utility.values()))
    separate = [ratio(row) for some in (forget, retain) for row in some]
    # exp and log may tie or untie ratios that are equal but for rounding
    if min((abs(a / b - 1) for i, a in enumerate(separate) for b in separate[:i]), default=1) > 1e-9:
        assert found["FQ"] == pytest.approx(ks_2samp(list(map(ratio, forget)), list(map(ratio, retain))).pvalue)


def test_fq_is_not_the_forget_quality_of_tofu():
    """A model that forgot like a retrained one, which TOFU would call perfect: its forget and retain set differ."""
    row = {"answer": "a", "generation": "a", "rouge_l_recall": 1.0, "answer_log_prob": -1.0}
    known = [row | {"truth_log_prob": -0.1, "perturbed_log_probs": [-5.0 - 0.01 * n]} for n in range(20)]
    unknown = [row | {"truth_log_prob": -3.0, "perturbed_log_probs": [-3.0 - 0.01 * n]} for n in range(20)]
    sets = {"forget": unknown, "retain": known, "real_authors": known, "world_facts": known}
    assert paper_averages({"per_example": {name: columns(some) for name, some in sets.items()}})["FQ"] < 1e-6


@pytest.mark.parametrize("results", [{}, {"per_example": {"forget": {}}}, {"per_example": None}])
def test_other_results_are_refused(results):
    with pytest.raises(ValueError, match="takes what evaluate_tofu returned"):
        paper_averages(results)
