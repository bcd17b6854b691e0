"""recipes/localization.py: facts are planted where it says, scores are compared with that, and the report's tables."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wagle_trainer.evaluation.metrics.localization import localization_auc

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module", autouse=True)
def recipes():
    """Recipes import each other by their bare names, as they do when they are run."""
    sys.path.insert(0, str(RECIPES))
    yield
    sys.path.remove(str(RECIPES))


@pytest.fixture
def localization(recipes, monkeypatch):
    module = importlib.import_module("localization")
    for way in module.WAYS.values():
        monkeypatch.setitem(way, "steps", 20)
    return module


@pytest.fixture
def arguments(localization, tmp_path):
    return localization.LocalizationArguments(output_dir=str(tmp_path), planted=0.05)


@pytest.fixture
def sets(make_examples):
    examples = [{"input_ids": ids, "labels": labels} for ids, labels in make_examples(24, prompt=(2, 4))]
    return {"forget": examples[:8], "retain": examples[8:16], "unseen": examples[16:]}


@pytest.mark.parametrize("way", ["anywhere, large steps", "MLPs, small steps", "smallest weights, small steps"])
def test_facts_are_planted_in_the_true_weights_alone(
    localization, arguments, sets, make_llama, word_tokenizer, weights_of, way
):
    model = make_llama()
    before = weights_of(model)
    truth = localization.plant(model, word_tokenizer, sets, arguments, way, seed=0)
    assert truth.density == pytest.approx(0.05, abs=1e-4)
    assert set(truth) == set(before)
    moved = 0
    for name, parameter in model.named_parameters():
        changed = before[name] != parameter.detach()
        assert not bool((changed & ~truth[name]).any()), name
        moved += int(changed.sum())
        assert not way.startswith("MLPs") or "mlp" in name or truth.num_selected_in(name) == 0
    assert moved > 0.5 * truth.num_selected
    if way.startswith("smallest"):
        values = torch.cat([before[name].flatten().abs() for name in truth])
        bits = torch.from_numpy(localization.flat(truth, truth).astype(bool))
        assert values[bits].max() <= values.median()


def test_scores_are_those_of_the_mask(localization, sets, make_llama):
    model = make_llama()
    mask, values = localization.scored(model, sets, "snip", 0.1)
    selected = localization.flat(mask, mask).astype(bool)
    numbers = localization.flat(values, mask)
    assert numbers[selected].min() >= numbers[~selected].max()
    assert localization_auc(numbers, selected) == 1


def test_a_score_that_cannot_rank_all_parameters(localization, sets, make_llama):
    """Embeddings have no input features: Wanda leaves them out, and they count as not found."""
    model = make_llama()
    mask, values = localization.scored(model, sets, "wanda", 0.1)
    names = [name for name, _ in model.named_parameters()]
    assert set(mask) == set(values) == set(names)
    assert mask.num_selected_in("model.embed_tokens.weight") == 0 and not values["model.embed_tokens.weight"].any()


def test_a_planted_model_is_found_by_what_changed(localization, arguments, sets, make_llama, word_tokenizer):
    """After large steps, planted weights are large: magnitude must find them, chance must not."""
    model = make_llama(initializer_range=0.02)
    truth = localization.plant(model, word_tokenizer, sets, arguments, "anywhere, large steps", seed=0)
    bits = localization.flat(truth, truth)
    found = {
        label: localization_auc(localization.flat(localization.scored(model, sets, label, 0.05)[1], truth), bits)
        for label in ("magnitude", "random")
    }
    assert found["magnitude"] > 0.7
    assert abs(found["random"] - 0.5) < 0.05


def test_flat_keeps_the_order_of_names(localization):
    tensors = {"b": torch.tensor([[3, 4]]), "a": torch.tensor([1, 2])}
    assert np.array_equal(localization.flat(tensors, ["a", "b"]), [1, 2, 3, 4])


def test_report(localization):
    numbers = {"forget": 0.1, "retain": 0.9, "held_out": 0.5, "relearned": 0.2, "learning_rate": 1e-3, "at_edge": True}
    reference = {"planted_density": 0.05, "retrained_forget": 0.0, "retrained_relearned": 0.1}
    rows = [
        {"way": "w", "seed": 0, "kind": "reference", "label": "", **numbers, **reference},
        {"way": "w", "seed": 0, "kind": "score", "label": "snip", "auc": 0.7, "lift": {"0.05": 2.0}},
        {"way": "w", "seed": 1, "kind": "score", "label": "snip", "auc": 0.8, "lift": {"0.05": 3.0}},
        {"way": "w", "seed": 0, "kind": "unlearned", "label": "truth", **numbers},
    ]
    text = localization.report(rows)
    assert "| snip | 2 | 0.750 | 2.50 |" in text
    assert "| truth | 1 | 0.001 (edge) | 0.100 | 0.900 | 0.500 | 0.200 |" in text


def test_refuses_unknown_ways(localization):
    with pytest.raises(ValueError, match="Unknown way nowhere"):
        localization.LocalizationArguments(ways=["nowhere"])
