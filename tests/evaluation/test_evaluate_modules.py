"""The metrics as `evaluate` modules: loaded as a user does, compared with numbers worked out by hand."""

import math
import socket
import zlib

import evaluate
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp

from wagle_trainer.evaluation import evaluate_modules, list_metrics, load_metric
from wagle_trainer.evaluation.metrics import metric, register_metric

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
    "localization_auc": ({"predictions": [1.0, 3.0, 2.0, 3.0], "references": [0, 1, 1, 0]}, {}, 0.625, None),
    "localization_precision": ({"predictions": [1, 0, 1, 1], "references": [1, 1, 0, 1]}, {}, 2 / 3, None),
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
    "rouge_1_recall": (
        {"predictions": ["mat the on", "no"], "references": ["the cat jumps on mats", "nothing"]},
        {},
        0.3,
        [0.6, 0.0],
    ),
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
    # The second example has no layer that counts; of the first, layers 0 and 2 do: (0.2 + 1) / (0.4 + 1).
    "unlearning_depth": (
        {"predictions": [[0.2, 0.3, 2.0], [1.0, 1.0, 1.0]], "references": [[0.4, 0.01, 1.0], [0.0, 0.01, -1.0]]},
        {},
        1.2 / 1.4,
        None,
    ),
    "verbatim_prefix": ({"predictions": [[True, True, False, True], [False]]}, {}, 0.25, [0.5, 0.0]),
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
    module = load_metric(name)
    assert module.name == name
    found = module.compute(**columns, **arguments)
    assert found[name] == pytest.approx(expected, abs=1e-12)
    if per_example is not None:
        assert found["per_example"] == pytest.approx(per_example)
    # added bit by bit
    for row in range(len(columns["predictions"])):
        module.add_batch(**{column: values[row : row + 1] for column, values in columns.items()})
    assert module.compute(**arguments)[name] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(CASES))
def test_metric_says_what_it_is(name):
    module = load_metric(name)
    assert set(module.features) == set(CASES[name][0])
    assert len(module.description) > 50
    assert "Args:" in module.inputs_description
    assert f"`{name}`" in module.inputs_description
    assert module.citation.startswith("@")


def test_loaded_by_path_without_a_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
    module = evaluate.load(evaluate_modules.__file__, "min_k", cache_dir=str(tmp_path))
    assert module.compute(predictions=[[-1.0, -5.0]])["min_k"] == 5.0


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
def test_bad_inputs_are_refused(name, columns, message):
    with pytest.raises(ValueError, match=message):
        load_metric(name).compute(**columns)


def test_unknown_metric_lists_what_there_is():
    with pytest.raises(ValueError, match="Unknown metric 'bleu'. Known: answer_probability, .*, zlib."):
        load_metric("bleu")


def test_a_metric_of_ones_own():
    """Nothing but its registration."""

    @register_metric("letters", inputs={"predictions": ("text", "generated answers")}, each=True)
    def letters(prediction):
        """Number of letters."""
        return len(prediction)

    try:
        found = load_metric("letters").compute(predictions=["abc", "a"])
        assert found == {"letters": 2.0, "per_example": [3.0, 1.0]}
        with pytest.raises(ValueError, match="'letters' exists already"):
            register_metric("letters", inputs={})(lambda prediction: 0)
    finally:
        metric._metrics._entries.pop("letters")
