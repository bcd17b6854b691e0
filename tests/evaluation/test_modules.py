"""The metrics as `evaluate` modules: loaded as a user does, compared with numbers worked out by hand."""

import math
import socket
import zlib
from pathlib import Path

import evaluate
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from setuptools import find_packages

from wagle_trainer.evaluation import list_metrics, load_metric, modules

FOLDER = Path(modules.__file__).parent
LOG2 = math.log(2)

# name -> (columns, keyword arguments, the number, the numbers per example or None)
CASES = {
    "answer_probability": ({"predictions": [-LOG2, 0.0]}, {}, 0.75, [0.5, 1.0]),
    "exact_memorization": ({"predictions": [[True, False, True, True], [False]]}, {}, 0.375, [0.75, 0.0]),
    "extraction_strength": ({"predictions": [[True, False, True, True], [True]]}, {}, 0.75, [0.5, 1.0]),
    "forget_quality": (
        {"predictions": [0.1, 0.5, -0.3, 0.9], "references": [0.2, 1.5, 1.3, 1.9]},
        {},
        ks_2samp([0.1, 0.5, -0.3, 0.9], [0.2, 1.5, 1.3, 1.9]).pvalue,
        None,
    ),
    "min_k": ({"predictions": [[-1.0, -5.0, -2.0, -4.0, -3.0], [-7.0]]}, {"k": 0.4}, 5.75, [4.5, 7.0]),
    "min_k_plus_plus": (
        {"predictions": [[-1.0, -3.0], [-4.0]], "means": [[-2.0, -2.0], [-1.0]], "stds": [[0.5, 0.5], [2.0]]},
        {},
        1.75,
        [2.0, 1.5],
    ),
    "model_utility": ({"predictions": [0.5, 0.25, 1.0]}, {}, hmean([0.5, 0.25, 1.0]), None),
    "privacy_leakage": ({"predictions": [0.8, 0.5], "references": [0.5, 0.5]}, {}, -30.0, [-60.0, 0.0]),
    "reference_score": ({"predictions": [2.0, 1.0], "references": [0.5, 3.0]}, {}, -0.25, [1.5, -2.0]),
    "roc_auc": ({"predictions": [1.0, 3.0, 2.0, 3.0], "references": [1, 0, 0, 1]}, {}, 0.625, None),
    "rouge_l_f1": (
        {"predictions": ["he jumped", "no"], "references": ["she jumps", "no"]},
        {"use_stemmer": True},
        0.75,
        [0.5, 1.0],
    ),
    "rouge_l_recall": (
        {"predictions": ["the cat lay on a mat", "no"], "references": ["The cat sat on the mat.", "nothing"]},
        {},
        RougeScorer(["rougeL"], use_stemmer=True)
        .score("The cat sat on the mat.", "the cat lay on a mat")["rougeL"]
        .recall
        / 2,
        [4 / 6, 0.0],
    ),
    "truth_ratio": (
        {"predictions": [-1.0, -2.0], "references": [[-2.0, -2.0], [-1.0]]},
        {"aggregation": "true_better"},
        (1 - math.exp(-1)) / 2,
        None,
    ),
    "zlib": ({"predictions": [3.0], "references": ["ä text"]}, {}, 3 / len(zlib.compress("ä text".encode())), None),
}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """Not the cache of whoever runs the tests."""
    folder = tmp_path_factory.getbasetemp() / "evaluate"
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)


def test_every_metric_has_a_case():
    assert list_metrics() == sorted(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_metric_is_its_definition(name):
    columns, arguments, expected, per_example = CASES[name]
    metric = load_metric(name)
    assert metric.name == name
    found = metric.compute(**columns, **arguments)
    assert found[name] == pytest.approx(expected, abs=1e-12)
    if per_example is not None:
        assert found["per_example"] == pytest.approx(per_example)
    # added bit by bit
    for row in range(len(columns["predictions"])):
        metric.add_batch(**{column: values[row : row + 1] for column, values in columns.items()})
    assert metric.compute(**arguments)[name] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(CASES))
def test_metric_says_what_it_is(name):
    metric = load_metric(name)
    assert set(metric.features) == set(CASES[name][0])
    assert len(metric.description) > 50
    assert "Args:" in metric.inputs_description
    assert f"`{name}`" in metric.inputs_description
    assert metric.citation.startswith("@")


def test_loaded_by_path_without_a_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
    metric = evaluate.load(str(FOLDER / "min_k"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=[[-1.0, -5.0]])["min_k"] == 5.0


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("rouge_l_recall", {"predictions": ["a"], "references": []}, "was given 1 predictions and 0 references"),
        (
            "rouge_l_recall",
            {"predictions": [], "references": []},
            "empty predictions and references: there is nothing",
        ),
        ("rouge_l_recall", {"predictions": ["a"]}, "needs predictions and references; references is missing"),
        ("model_utility", {"predictions": []}, "model_utility was given empty predictions"),
        ("zlib", {}, "zlib needs predictions and references, and has been given nothing"),
        ("min_k", {"predictions": [[-1.0], []]}, "token_log_probs is empty"),
        (
            "truth_ratio",
            {"predictions": [-1.0], "references": [[]], "aggregation": "true_better"},
            r"wrong\[0\] is empty",
        ),
        ("roc_auc", {"predictions": [1.0, 2.0], "references": [1, 2]}, "1 .member. and 0"),
        ("roc_auc", {"predictions": [1.0, 2.0], "references": [1, 1]}, "non_members is empty"),
    ],
)
def test_bad_columns_are_refused(name, columns, message):
    with pytest.raises(ValueError, match=message):
        load_metric(name).compute(**columns)


def test_unknown_metric_lists_what_there_is():
    with pytest.raises(ValueError, match="Unknown metric 'bleu'. Known: answer_probability, .*, zlib."):
        load_metric("bleu")


def test_every_metric_is_in_a_wheel():
    packages = find_packages(str(FOLDER.parents[2]), include=["wagle_trainer*"])
    assert {f"wagle_trainer.evaluation.modules.{name}" for name in CASES} < set(packages)
