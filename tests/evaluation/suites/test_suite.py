import subprocess
import sys

import numpy as np
import pytest

from wagle_trainer.data.fictional import fictional_tokenizer
from wagle_trainer.evaluation import paper_averages
from wagle_trainer.evaluation.suites import (
    Suite,
    describe_suites,
    get_suite,
    list_suites,
    mean_of,
    register_suite,
    suite,
)
from wagle_trainer.evaluation.suites.suite_metric import Auc, HarmonicMean, Mean, WeightedSum


def test_metrics_are_stated_once():
    """What tables, reports and callbacks read follows from the table of metrics."""
    for name in ("tofu", "muse", "copyright", "detoxification"):
        found = get_suite(name)
        names = [metric.name for metric in found.metrics]
        assert len(set(names)) == len(names)
        assert all(metric.description.endswith(".") for metric in found.metrics)
        assert set(found.headline) | set(found.forget_metrics) | set(found.utility_metrics) <= set(names)
        for side in ("forget", "utility"):
            main = [m.name for m in found.metrics if m.main and getattr(m, side)]
            assert main == list(getattr(found, f"{side}_metrics"))[:1]


def test_statistics_of_weighted_examples_are_those_of_repeated_ones():
    random = np.random.default_rng(0)
    examples = {
        "forget": {"x": random.random(6), "mia": random.random(6).round(1)},
        "holdout": {"mia": random.random(4).round(1)},
    }
    weights = {"forget": np.array([2.0, 0, 1, 1, 3, 0]), "holdout": np.array([1.0, 2, 0, 1])}
    repeated = {
        name: {column: np.repeat(values, weights[name].astype(int)) for column, values in columns.items()}
        for name, columns in examples.items()
    }
    square = Mean("forget", "x", transform=lambda x, _: x**2, after=np.sqrt)
    statistics = (
        Mean("forget", "x"),
        square,
        HarmonicMean((Mean("forget", "x"), square)),
        WeightedSum(((0.25, square), (0.75, Mean("forget", "x")))),
        Auc("mia", "forget", "holdout"),
    )
    for statistic in statistics:
        expected = statistic.of(repeated, {})
        bound = statistic.bind(examples, {})
        assert bound.of_weights(weights) == pytest.approx(expected)
        several = {name: np.stack([values, np.ones(len(values))]) for name, values in weights.items()}
        assert bound.of_weights(several) == pytest.approx([expected, bound.value()])
        assert statistic.bind({}, {}) is None


@pytest.mark.parametrize("name", list_suites())
def test_a_suite_says_how_to_read_its_numbers(name):
    found = get_suite(name)
    assert found.name == name
    assert len(describe_suites()[name]) > 30
    assert all(len(head) == 2 for head in found.headline.values())
    read = {**found.forget_metrics, **found.utility_metrics}
    assert set(read.values()) <= {"lower", "higher"}
    assert not set(found.forget_metrics) & set(found.utility_metrics)
    assert set(list(found.forget_metrics)[:1] + list(found.utility_metrics)[:1]) <= set(found.headline)


def test_unknown_suite_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown suite 'tofo'. Did you mean 'tofu'\? Known: .*tofu"):
        get_suite("tofo")


def test_a_suite_of_ones_own(monkeypatch):
    monkeypatch.setattr(suite._suites, "_entries", dict(suite._suites._entries))

    @register_suite("mine")
    class Mine(Suite):
        """A suite of one's own."""

        metrics = (mean_of("right", "forget", "right", "Share of right answers.", forget="lower", head=("a", "b")),)

        def evaluate(self, model, tokenizer, data, **kwargs):
            return self.numbers({"forget": {"right": data}}, {})

    assert "mine" in list_suites()
    assert get_suite("mine").evaluate(None, None, [0, 1]) == {"right": 0.5}
    assert Mine.headline == {"right": ("a", "b")}
    assert Mine.forget_metrics == {"right": "lower"}
    with pytest.raises(NotImplementedError, match="Mine must define load"):
        get_suite("mine").load("folder")
    with pytest.raises(ValueError, match="The suite 'tofu' exists already"):
        register_suite("tofu")(Mine)


def test_suites_are_listed_without_torch():
    code = "import sys; from wagle_trainer.evaluation import suites; assert 'torch' not in sys.modules; suites.list_suites()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tofu_by_name(make_llama):
    tofu = get_suite("tofu")
    tokenizer = fictional_tokenizer()
    model = make_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=512)
    sets = tofu.load("fictional", forget_split="forget05", limit=2)
    results = tofu.evaluate(model, tokenizer, sets, max_new_tokens=4, progress=False)
    assert {name: len(values["question"]) for name, values in results["per_example"].items()} == dict.fromkeys(sets, 2)
    without_reference = {"forget_quality"}
    for metric in {*tofu.headline, *tofu.forget_metrics, *tofu.utility_metrics} - without_reference:
        assert isinstance(results[metric], float), metric
    assert 1 - paper_averages(results)["1-ROUGE"] == pytest.approx(results["forget_Q_A_ROUGE"])
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        tofu.load("no-such-owner/no-such-dataset")
