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


def test_planting_warns_of_no_overlap(localization, arguments, sets, make_llama, word_tokenizer, recwarn):
    localization.plant(make_llama(), word_tokenizer, sets, arguments, "anywhere, large steps", seed=0)
    assert [str(warning.message) for warning in recwarn if "retain set" in str(warning.message)] == []


def test_a_way_with_too_few_weights_is_named(localization, sets, make_llama, word_tokenizer, monkeypatch):
    monkeypatch.setitem(localization.WAYS["MLPs, small steps"], "include", [r"layers\.0\.mlp.up"])
    arguments = localization.LocalizationArguments(planted=0.9)
    with pytest.raises(ValueError, match="The way 'MLPs, small steps' allows .* 90.00% cannot be planted there"):
        localization.plant(make_llama(), word_tokenizer, sets, arguments, "MLPs, small steps", seed=0)


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


def test_a_score_without_the_embeddings(localization, sets, make_llama):
    localization.LocalizationArguments(scores=["snip-body"], unlearned=["wagle-body:1e-3"])
    model = make_llama()
    mask, values = localization.scored(model, sets, "snip-body", 0.1)
    assert set(mask) == set(values) == {name for name, _ in model.named_parameters()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert mask.num_selected_in(name) == 0 and not values[name].any()
    assert mask.num_selected > 0


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


RESULTS = RECIPES.parent / "benchmarks" / "results" / "localization"


def test_committed_rows_go_on_with_their_settings_alone(localization):
    rows = localization.Rows(RESULTS / "results.json", ("kind", "label", "way", "seed"))
    localization.check_settings(localization.LocalizationArguments(), rows)
    assert localization.report(rows.rows) == (RESULTS / "report.md").read_text(encoding="utf-8")
    other = localization.LocalizationArguments(steps=41, planted=0.1, relearning_rates=[0.1])
    with pytest.raises(
        ValueError, match=r"steps was 40 and is 41; planted was 0.05 and is 0.1; relearning_rates was \["
    ):
        localization.check_settings(other, rows)


def test_a_new_file_keeps_the_settings(localization, tmp_path):
    rows = localization.Rows(tmp_path / "results.json")
    localization.check_settings(localization.LocalizationArguments(steps=7), rows)
    rows.save()
    again = localization.Rows(tmp_path / "results.json")
    localization.check_settings(localization.LocalizationArguments(steps=7, densities=[0.3]), again)
    with pytest.raises(ValueError, match="steps was 7 and is 40. Give another --output_dir"):
        localization.check_settings(localization.LocalizationArguments(), again)


def test_scores_get_the_densities_that_they_lack(localization, tmp_path, monkeypatch, capsys):
    asked = []

    class Planted:
        def __init__(self, args, way, seed):
            pass

        def reference(self):
            return {"planted_density": 0.05, "forget": 0.9, "retain": 0.9, "held_out": 0.9, "relearned": 0.9} | {
                "retrained_relearned": 0.1,
                "retrained_forget": 0.1,
            }

        def compare(self, reference):
            pass

        def score(self, label, densities):
            asked.append((label, densities))
            values = {f"{density:g}": 100 * density for density in densities}
            return {"precision": dict(values), "lift": dict(values), "auc": 0.5}

    monkeypatch.setattr(localization, "Planted", Planted)
    rows = localization.Rows(tmp_path / "results.json")
    way = "MLPs, small steps"

    def run(labels, densities):
        args = localization.LocalizationArguments(output_dir=str(tmp_path), densities=densities)
        localization.fill(args, rows, way, 0, [("reference", ""), *(("score", label) for label in labels)])

    run(["snip"], [0.05])
    run(["snip", "random"], [0.02])
    run(["snip", "random"], [0.02])
    assert asked == [("snip", [0.05]), ("snip", [0.02]), ("random", [0.02])]
    again = localization.Rows(tmp_path / "results.json")
    row = again.find(label="snip")
    assert row["lift"] == row["precision"] == {"0.05": 5.0, "0.02": 2.0}
    assert row["environments"]["0.02"] in again.content["environments"]
    text = localization.report(again.rows)
    assert "| score | seeds | AUC | lift at 0.02 | lift at 0.05 |" in text
    assert "| snip | 1 | 0.500 | 2.00 | 5.00 |" in text and "| random | 1 | 0.500 | 2.00 | - |" in text


def test_rows_of_a_model_that_was_planted_elsewhere(localization, make_llama):
    planted = localization.Planted.__new__(localization.Planted)
    planted.truth = type("Mask", (), {"digest": "a"})
    planted.bench = type("Bench", (), {"digest": staticmethod(lambda: "b")})
    planted.compare({"truth": "a"})
    planted.compare({"truth": "a", "weights_digest": "b"})
    for reference in ({"truth": "x"}, {"truth": "a", "weights_digest": "x"}):
        with pytest.warns(UserWarning, match="planted elsewhere"):
            planted.compare(reference)


def test_refuses_unknown_ways(localization):
    with pytest.raises(ValueError, match="Unknown way nowhere"):
        localization.LocalizationArguments(ways=["nowhere"])
