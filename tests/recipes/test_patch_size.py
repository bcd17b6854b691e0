"""recipes/patch_size.py: its rule for learning rates, what its rows hold, that a run can be repeated, and what follows."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wagle_trainer.evaluation import load_results

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module", autouse=True)
def recipes():
    """Recipes import each other by their bare names, as they do when they are run."""
    sys.path.insert(0, str(RECIPES))
    yield
    sys.path.remove(str(RECIPES))


@pytest.fixture(scope="module")
def patch_size(recipes):
    return importlib.import_module("patch_size")


@pytest.fixture(scope="module")
def runs(recipes):
    return importlib.import_module("patch_size_runs")


@pytest.fixture(scope="module")
def masks(recipes):
    return importlib.import_module("patch_size_masks")


@pytest.fixture(scope="module")
def report(recipes):
    return importlib.import_module("patch_size_report")


# The rule for the learning rate


def valley(at):
    """Badness that falls to a valley and rises again; a plateau of 1 far below."""
    return lambda rate: min(1.0, abs(math.log10(rate / at)) / 2)


@pytest.mark.parametrize("score", ["random", "gradient"])
@pytest.mark.parametrize("factor", [1 / 9, 1 / 3, 1, 3, 9])
def test_finds_the_valley(patch_size, score, factor):
    density = 1e-2
    centre = 3e-5 / (density if score == "random" else density**0.5)
    grid = min(patch_size.GRID, key=lambda rate: abs(math.log(rate / (centre * factor))))
    assert patch_size.search_rate(valley(grid), score, density, 8) == (grid, False)


def test_tries_the_rate_halfway_to_the_better_neighbour(patch_size):
    tried = []

    def badness(rate):
        tried.append(rate)
        return valley(1.8e-3)(rate)

    assert patch_size.search_rate(badness, "gradient", 1e-3, 8) == (1.7e-3, False)
    assert tried[-1] == 1.7e-3


def test_climbs_over_a_plateau(patch_size):
    """Nothing is forgotten at the first rates: they are all as bad."""
    tried = []

    def badness(rate):
        tried.append(rate)
        return 1.0 if rate < 0.05 else abs(math.log10(rate / 0.1))

    assert patch_size.search_rate(badness, "random", 1e-2, 8) == (0.1, False)


def test_does_not_climb_where_nothing_is_kept(patch_size):
    tried = []

    def badness(rate):
        tried.append(rate)
        return 2.0 if rate > 1e-3 else valley(3e-4)(rate)

    assert patch_size.search_rate(badness, "random", 1e-2, 8) == (3e-4, False)
    assert max(tried) == 3e-3  # where the search began


def test_says_that_the_best_is_at_the_edge(patch_size):
    assert patch_size.search_rate(lambda rate: -math.log(rate) / 10, "gradient", 1.0, 4) == (1e-3, True)
    assert patch_size.search_rate(lambda rate: rate, "gradient", 1e-2, 3)[1]


def test_failed_runs_are_the_worst(patch_size):
    def badness(rate):
        return math.inf if rate > 1e-3 else valley(3e-4)(rate)

    assert patch_size.search_rate(badness, "gradient", 1e-2, 6) == (3e-4, False)


def test_labels(masks):
    assert masks.spread("wagle") == ("wagle", 1e-6)
    assert masks.spread("wagle:1e-3") == ("wagle", 1e-3)
    assert masks.spread("wagle:balanced") == ("wagle", "balanced")
    assert masks.spread("snip") == ("snip", None)
    assert masks.spread("wagle-body") == ("wagle-body", 1e-6)
    for label in ("snip-body", "wagle-body:1e-3"):
        masks.check_label(label)
    assert masks.first_rate("snip-body", 1e-3, 3e-5) == masks.first_rate("snip", 1e-3, 3e-5)
    assert masks.first_rate("none", 1.0, 3e-5) == 3e-5


# Runs


@pytest.fixture
def bench(recipes, runs, make_llama, make_word_tokenizer, make_examples, tmp_path):
    """A bench on a tiny model; the forget set is what the model says most likely, so that there is something to lose."""
    tasks = importlib.import_module("tasks.subject")

    def make():
        examples = [{"input_ids": ids, "labels": labels} for ids, labels in make_examples(24, prompt=(2, 4))]
        sets = {"forget": examples[:8], "retain": examples[8:16], "unseen": examples[16:]}
        tokenizer = make_word_tokenizer()
        task = tasks.Subject(make_llama(), tokenizer, sets)
        tasks.teach(task.model, examples, seed=0, rate=1e-2, goal=0.9)
        return runs.Bench(
            task,
            0,
            steps=6,
            batch_size=4,
            relearning_rates=[1e-3, 1e-2],
            relearning_steps=3,
            folder=tmp_path,
            beta=1.0,
        )

    return make


def measured(row):
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_run_comes_out_the_same_again(bench, one_thread):
    """After other runs on the same model, and in a new bench."""
    one = bench()
    first = one.run("npo", "snip", None, 0.05, 1e-2)
    other = one.run("grad_diff", "none", None, 1.0, 3e-3)
    again = one.run("npo", "snip", None, 0.05, 1e-2)
    assert measured(first) == measured(again)
    assert first["weights_digest"] != other["weights_digest"]
    assert measured(bench().run("npo", "snip", None, 0.05, 1e-2)) == measured(first)


def test_the_reference_weights_are_back_after_a_run(bench, one_thread):
    one = bench()
    before = one.digest()
    row = one.run("npo", "gradient", None, 0.1, 3e-2)
    assert one.digest() == before
    assert row["weights_digest"] != before
    assert row["num_selected"] == math.floor(0.1 * sum(p.numel() for p in one.model.parameters()))
    assert row["forget"] < 0.7 * one.measure()["forget"]


def test_a_score_without_the_embeddings(bench):
    one = bench()
    row = one.run("npo", "snip-body", None, 0.05, 1e-2, attack=False)
    [mask] = one.masks.values()
    with_embeddings = one.run("npo", "snip", None, 0.05, 1e-2, attack=False)
    [other] = one.masks.values()
    words = ("model.embed_tokens.weight", "lm_head.weight")
    assert all(mask.num_selected_in(name) == 0 for name in words if name in mask)
    assert sum(other.num_selected_in(name) for name in words if name in other) > 0
    assert row["weights_digest"] != with_embeddings["weights_digest"]
    assert row["num_selected"] > 0


def test_attack_later_is_attack_at_once(bench, one_thread):
    one = bench()
    at_once = one.run("npo", "gradient", None, 0.1, 3e-2)
    without = one.run("npo", "gradient", None, 0.1, 3e-2, attack=False)
    assert "relearned" not in without
    assert measured(without | one.attack_later(3e-2)) == measured(at_once)
    one.forget_runs()
    assert one.attack_later(3e-2) is None


def test_a_run_that_fails_is_a_row(bench):
    one = bench()
    before = one.digest()
    row = one.run("grad_ascent", "none", None, 1.0, 1e20)
    assert "not finite" in row["failed"] or "nan" in row["failed"]
    assert one.digest() == before


def test_relearning_and_rounding_by_hand(bench, one_thread):
    one = bench()
    attacked = one.attack()
    assert attacked["relearned"] == max(attacked["relearning"].values())
    assert one.taught and one.asked and all(example not in one.asked for example in one.taught)
    with torch.no_grad():
        for module in one.model.modules():
            if isinstance(module, torch.nn.Linear) and module is not one.model.lm_head:
                scale = module.weight.abs().amax(1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
    assert attacked["quantized"]["8"]["forget"] == pytest.approx(one.known(one.task.sets["forget"]), abs=1e-5)


def test_rows_are_kept_and_found(runs, tmp_path):
    path = tmp_path / "results.json"
    rows = runs.Rows(path)
    key = {"score": "snip", "gamma": None, "density": 1e-3, "learning_rate": 3e-3, "seed": 1}
    assert rows.find(**key) is None
    rows.add({**key, "forget": 0.5}, {"torch": "2"})
    again = runs.Rows(path)
    assert again.find(**key)["forget"] == 0.5
    assert again.find(**(key | {"seed": 2})) is None
    assert again.content["environments"][again.rows[0]["environment"]] == {"torch": "2"}


def test_whoever_reruns_a_row_gets_it_back(patch_size, runs, bench, tmp_path, one_thread):
    """Rows of a study, and a later one that runs them again, on a bench of its own."""

    def study():
        args = patch_size.PatchSizeArguments(
            output_dir=str(tmp_path), scores=["random", "snip"], densities=[0.05], seeds=[0], max_rates=2
        )
        made = patch_size.Study(args, runs.Rows(tmp_path / "results.json"))
        made._benches[0] = bench()
        return made

    first = study()
    assert first.missing() == (3, 3)
    first.block("npo", ["random", "snip"], 0.05)
    assert first.missing() == (1, 3)  # all weights
    environment = first.rows.content["environments"][first.rows.rows[0]["environment"]]
    assert environment["wagle_trainer"] and environment["commit"] and environment["threads"] == 1
    lines = study().rerun(study().args.rerun or 2)
    assert len(lines) == 2 and all("comes out the same" in line for line in lines)
    assert {line.split()[2] for line in lines} == {"random", "snip"}
    rates = sorted({row["learning_rate"] for row in first.rows.rows if row["score"] == "snip"})
    named = study()
    named.args.runs = [f"snip 0.05 {rates[-1]!r}", "none 1 1.0"]
    [line] = named.rerun(5)
    assert "snip" in line and f"lr {rates[-1]:g} " in line
    changed = study()
    changed.rows.rows[0] |= {"forget": 0.123, "weights_digest": "0"}
    [line] = changed.rerun(1)
    assert "forget was 0.123 and is" in line and "weights_digest was 0 and is" in line
    assert "other versions" not in line


def test_commit(runs, tmp_path):
    assert runs.commit(RECIPES) is None or len(runs.commit(RECIPES).rstrip("+")) == 40
    assert runs.commit(tmp_path) is None


def test_rows_with_other_settings_are_not_added_to(patch_size, runs, tmp_path):
    def study(**changes):
        args = patch_size.PatchSizeArguments(output_dir=str(tmp_path), **changes)
        return patch_size.Study(args, runs.Rows(tmp_path / "results.json"))

    study().rows.save()
    study(seeds=[5], densities=[0.5])
    with pytest.raises(ValueError, match="steps was 12 and is 13. Give another --output_dir"):
        study(steps=13)


@pytest.mark.parametrize(
    ("task", "name"),
    [("people", "people"), ("tofu", "people"), ("wmdp", "wmdp"), ("copyright", "copyright"), ("detox", "detox")],
)
def test_tasks_are_those_of_the_recipes(patch_size, runs, tmp_path, monkeypatch, task, name):
    """By their names alone, each with its configuration; a study is made of the small Llama of each seed."""
    made = []

    class Stopped(patch_size.Study):
        def prepare(self):
            pass

        def block(self, objective, labels, density):
            made.append((self.task_name, self.model_name, self.args.model, self.task.data.dataset_name, labels))

    monkeypatch.setattr(patch_size, "Study", Stopped)
    monkeypatch.setattr(patch_size, "write_report", lambda *_: "")
    monkeypatch.setattr(sys, "argv", ["patch_size.py", "--task", task, "--output_dir", str(tmp_path), "--seeds", "7"])
    patch_size.main()
    assert made[0] == (name, "small-llama", None, "fictional", ["none"])
    written = yaml.safe_load((RECIPES / "configs" / f"patch_size_{name}.yaml").read_text(encoding="utf-8"))
    assert made[-1][-1] == written.get("scores", ["random", "gradient", "snip", "wagle:1e-6"])


def test_facts_of_the_study_are_capitals_unless_told(patch_size, runs, tmp_path):
    args = patch_size.PatchSizeArguments(output_dir=str(tmp_path), task="facts", model="m")
    study = patch_size.Study(args, runs.Rows(tmp_path / "results.json"))
    assert study.task.data.relations == ["capital"]
    assert study.rows.content["settings"].keys() == study.rows.content["data"].keys() == {"m, facts"}
    other = study.task.arguments(relations=["currency"])
    with pytest.raises(ValueError, match=r"relations was \['capital'\] and is \['currency'\]"):
        patch_size.Study(args, study.rows, other)


def test_where_a_dataset_lies_is_no_setting(patch_size, runs, tmp_path):
    def study(place):
        folder = tmp_path / place / "questions"
        folder.mkdir(parents=True)
        args = patch_size.PatchSizeArguments(output_dir=str(tmp_path), task="tofu", model="m")
        data = patch_size.class_of("tofu").arguments(dataset_name=str(folder), style="plain")
        return patch_size.Study(args, runs.Rows(tmp_path / "results.json"), data)

    study("here").rows.save()
    [kept] = study("there").rows.content["data"].values()
    assert kept["dataset_name"] == "questions"


@pytest.mark.parametrize("text", ["snip 1e-3", "snip 1e-3 x", "snip 1 1e-3", "none 0.5 1e-4", "snip 1e-3 0"])
def test_a_run_that_is_named_wrongly_is_refused(patch_size, text):
    with pytest.raises(ValueError, match="in runs"):
        patch_size.PatchSizeArguments(output_dir="out", runs=[text])


def test_runs_that_are_named_take_the_place_of_a_search(patch_size, runs, tmp_path, monkeypatch):
    args = patch_size.PatchSizeArguments(
        output_dir=str(tmp_path), runs=["none 1 1e-4", "wagle:1e-6 1e-3 3e-3"], seeds=[3, 4]
    )
    study = patch_size.Study(args, runs.Rows(tmp_path / "results.json"))
    made = []
    monkeypatch.setattr(study, "run", lambda *run: made.append(run))
    study.given("npo")
    assert made == [
        ("npo", label, density, rate, seed)
        for seed in (3, 4)
        for label, density, rate in (("none", 1.0, 1e-4), ("wagle:1e-6", 1e-3, 3e-3))
    ]
    assert study.missing() == (4, 4)
    done = {"model": "small-llama", "task": "people", "objective": "npo", "density": 1e-3, "relearned": 0.1}
    study.rows.rows.extend(
        done | {"score": "wagle", "gamma": 1e-6, "learning_rate": rate, "seed": 3} for rate in (1e-3, 3e-3)
    )
    assert study.missing() == (3, 4)


def test_runs_that_failed_are_done(patch_size, runs, tmp_path):
    """But a rate that failed in the search says nothing, as long as others are left to try."""

    def study(**changes):
        args = patch_size.PatchSizeArguments(
            **{"output_dir": str(tmp_path), "scores": ["snip"], "densities": [1e-2], "seeds": [0, 1], "max_rates": 2}
            | changes
        )
        return patch_size.Study(args, runs.Rows(tmp_path / "results.json"))

    one = study()
    key = {"model": "small-llama", "task": "people", "objective": "npo", "score": "snip", "gamma": None}
    failed = {**key, "density": 1e-2, "failed": "The loss is nan."}
    assert one.progress() == "4 of the 4 runs that were planned are missing."
    one.rows.rows.append({**failed, "learning_rate": 3e-4, "seed": 1})
    assert one.missing() == (3, 4)
    assert one.progress().startswith("3 of the 4 runs that were planned are missing; 1 failed")
    tried = []
    patch_size.search_rate(lambda rate: tried.append(rate) or math.inf, "snip", 1e-2, 2)
    for rate in tried[:-1]:
        one.rows.rows.append({**failed, "learning_rate": rate, "seed": 0})
        assert one.missing() == (3, 4)
    one.rows.rows.append({**failed, "learning_rate": tried[-1], "seed": 0})
    assert one.missing() == (2, 4)
    given = study(runs=["snip 1e-2 3e-4", "none 1 1e-5"])
    given.rows.rows.append({**failed, "learning_rate": 3e-4, "seed": 0})
    assert given.missing() == (3, 4)
    unattacked = {**key, "score": "none", "density": 1.0, "learning_rate": 1e-5, "seed": 0, "forget": 0.1}
    given.rows.rows.append(unattacked)
    assert given.missing() == (3, 4)
    unattacked["attack_failed"] = "Relearning at 1: the loss is nan."
    assert given.missing() == (2, 4)


@pytest.fixture
def diverging(bench):
    """A bench whose relearning attack diverges."""
    one = bench()
    one.relearning_rates = [1e30]
    return one


def test_an_attack_that_diverges_is_told_in_the_row(diverging):
    before = diverging.digest()
    row = diverging.run("npo", "gradient", None, 0.1, 3e-2)
    assert row["forget"] > 0 and "Relearning at 1e+30" in row["attack_failed"]
    assert "relearned" not in row and "failed" not in row
    assert diverging.digest() == before
    later = diverging.run("npo", "gradient", None, 0.1, 3e-2, attack=False)
    assert "attack_failed" not in later
    assert diverging.attack_later(3e-2) == {"attack_failed": row["attack_failed"]}
    assert diverging.digest() == before
    with pytest.raises(FloatingPointError, match="The reference model: Relearning .* lower --relearning_rates"):
        diverging.references()
    assert diverging.digest() == before


def test_a_study_goes_on_after_an_attack_that_diverged(patch_size, runs, diverging, tmp_path):
    args = patch_size.PatchSizeArguments(output_dir=str(tmp_path), scores=["snip"], densities=[0.05], seeds=[0])
    study = patch_size.Study(args, runs.Rows(tmp_path / "results.json"))
    study._benches[0] = diverging
    key = {"model": "small-llama", "task": "people", "seed": 0}
    study.rows.add(key | {"forget": 0.9, "retain": 0.9, "held_out": 0.9}, {}, "references")
    first = study.run("npo", "snip", 0.05, 1e-2, 0, attack=False)
    attacked = study.run("npo", "snip", 0.05, 1e-2, 0)
    assert attacked is first and "attack_failed" in first
    assert "the attack failed: Relearning" in patch_size.describe(first)
    again = patch_size.Study(args, runs.Rows(tmp_path / "results.json"))
    assert again.run("npo", "snip", 0.05, 1e-2, 0) == first, "it is in the file, and is not run again"
    assert again.missing() == (1, 2)


# Whose rows they are


@pytest.fixture
def subject(recipes, make_llama, word_tokenizer, make_examples):
    """subject(seed) -> a model that was taught nothing, with its sets."""
    examples = [{"input_ids": ids, "labels": labels} for ids, labels in make_examples(12, prompt=(2, 4))]
    sets = {"forget": examples[:4], "retain": examples[4:8], "unseen": examples[8:]}
    return lambda seed: importlib.import_module("tasks.subject").Subject(make_llama(seed), word_tokenizer, sets)


@pytest.fixture
def study_of(patch_size, runs, subject, tmp_path, monkeypatch):
    """study_of(model) -> a study of facts that such a model knows, with a row of the reference model 0."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def make(seed, model=str(tmp_path / "model"), **changes):
        given = {"output_dir": str(tmp_path), "model": model, "model_name": "known", "task": "facts", "seeds": [0, 1]}
        study = patch_size.Study(
            patch_size.PatchSizeArguments(**given | changes), runs.Rows(tmp_path / "results.json")
        )
        monkeypatch.setattr(study.task, "subject", lambda *_: subject(seed))
        monkeypatch.setattr(patch_size, "load_shared", lambda path: subject(seed).model)
        for row_seed in (0, 1):
            key = {"model": "known", "task": study.task_name, "seed": row_seed}
            study.rows.content["references"].append(key | {"weights_digest": runs.digest_of(subject(0).model)})
        return study

    return make


def test_rows_of_a_model_are_no_answer_for_another(study_of, tmp_path):
    same = study_of(0)
    same.check_model()
    assert same.bench(0) is same.bench(0)
    other = study_of(1)
    for action in (other.check_model, lambda: other.bench(0), other.prepare):
        with pytest.raises(ValueError, match="rows of 'known'.*it is another model. Give it another --model_name"):
            action()
    assert not (tmp_path / "results.json").exists()
    study_of(1, model_name="other").check_model()


def test_a_model_is_named_by_its_folder(study_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "model")
    assert study_of(0, model=".", model_name=None).model_name == "model"
    assert study_of(0, model="HuggingFaceTB/SmolLM2-135M", model_name=None).model_name == "SmolLM2-135M"


def test_a_model_that_was_trained_again_is_told_once(study_of, recwarn):
    """On another machine, training gives other weights."""
    for seed, warned in ((0, 0), (1, 1)):
        study = study_of(seed, model=None, task="people")
        study.task.reference_model = lambda *_: "trained"
        study.check_model()
        study.bench(0)
        study.bench(1)
        told = [str(warning.message) for warning in recwarn if "was trained elsewhere" in str(warning.message)]
        assert len(told) == warned


def test_tofu_is_taught_to_a_given_model(patch_size):
    kind = patch_size.class_of("tofu")
    assert kind(kind.arguments(dataset_name="locuslab/TOFU")).teaches_given_model
    assert not kind(kind.arguments()).teaches_given_model


# What follows from the rows


def row(score, density, seed, forget, *, rate=1e-3, held_out=0.5, relearned=0.0, gamma=None):
    return {
        "model": "m",
        "task": "t",
        "objective": "npo",
        "score": score,
        "gamma": gamma,
        "density": density,
        "learning_rate": rate,
        "seed": seed,
        "forget": forget,
        "retain": 0.9,
        "held_out": held_out,
        "goal": 0.1,
        "relearned": relearned,
        "quantized": {"8": {"forget": forget}, "4": {"forget": forget}},
        "patch_bytes": 1000,
    }


def reference(seed):
    return {
        "model": "m",
        "task": "t",
        "seed": seed,
        "forget": 0.6,
        "retain": 0.5,
        "held_out": 0.5,
        "relearned": 0.8,
        "quantized": {"8": {"forget": 0.6}, "4": {"forget": 0.2}},
    }


def content(rows, seeds=(0, 1)):
    return {"rows": rows, "references": [reference(seed) for seed in seeds], "environments": {}}


DENSITIES = (1e-6, 1e-5, 1e-4, 1e-3)


def reaching(score, at, densities=DENSITIES):
    """Rows of a score that reaches the goal on each seed from a density on; None: at none."""
    return [
        row(score, density, seed, 0.05 if found is not None and density >= found else 0.5)
        for seed, found in enumerate(at)
        for density in densities
    ]


def ratio(report, own, chance, robust=False, densities=DENSITIES):
    rows = [row("none", 1.0, seed, 0.05) for seed in range(len(own))]
    rows += reaching("snip", own, densities) + reaching("random", chance, densities)
    [group] = report.groups(content(rows, range(len(own))))
    return report.ratio_to_random(group, "snip", robust), group


def test_ratio_to_random(report):
    """Bounds: random failed at 1e-4, so it needs more than 10 and 1 times; at 1e-3 it was enough, and the score failed at a tenth
    of what it needed: at most 1000 and 100 times. Logarithms one apart, of standard error 1/2; Student's t with one degree of
    freedom is 12.706."""
    found, group = ratio(report, own=[1e-5, 1e-4], chance=[1e-3, 1e-3])
    assert (found.least, found.most) == (pytest.approx(math.sqrt(10)), pytest.approx(math.sqrt(1000 * 100)))
    ends = [10 ** (0.5 - 12.706 / 2), 10 ** (2.5 + 12.706 / 2)]
    assert ([found.low, found.high], found.seeds) == (pytest.approx(ends, rel=1e-3), 2)
    said = report.sentences(group)
    assert any("snip needs between 3.16 and 316 times fewer weights than random to forget" in text for text in said)
    assert any("; 2 seeds)" in text for text in said)
    assert ["random", "reached", "0.001", "0.001", ""] in report.size_table(group)
    assert ["all weights", "reached", "1", "1", ""] in report.size_table(group)


@given(st.lists(st.tuples(st.floats(-5.9, -3), st.floats(-5.9, -3)), min_size=2, max_size=5))
def test_the_bounds_hold_whatever_the_sizes_are(report, exponents):
    """Sizes between the densities tried: each is seen at the next density, and the true ratio lies within the bounds."""
    own, chance = zip(*exponents, strict=True)
    seen = [[next(d for d in DENSITIES if d >= 10**e * (1 - 1e-9)) for e in of] for of in (own, chance)]
    found, _ = ratio(report, own=seen[0], chance=seen[1])
    true = 10 ** (sum(chance) / len(chance) - sum(own) / len(own))
    assert found.least <= true * 1.001
    assert found.most >= true * 0.999
    assert found.low <= found.least and found.high >= found.most


def test_random_that_never_reaches_the_goal_leaves_a_lower_bound(report):
    found, group = ratio(report, own=[1e-4, 1e-5], chance=[None, 1e-3])
    assert found.most is None and found.high is None
    assert found.least == pytest.approx(math.sqrt(10 * 10))
    assert str(found).startswith(">= 10 (95 % from ")
    assert any("at least 10 times fewer" in text for text in report.sentences(group))
    assert ["random", "reached", "> 0.001", "0.001", ""] in report.size_table(group)


def test_a_score_at_its_smallest_density_leaves_a_lower_bound(report):
    found, _ = ratio(report, own=[1e-6], chance=[1e-4])
    assert found.most is None and found.least == pytest.approx(10)
    assert (found.low, found.high) == (None, None)


def test_random_at_its_smallest_density_leaves_an_upper_bound(report):
    found, group = ratio(report, own=[1e-4], chance=[1e-6])
    assert found.least is None and found.most == pytest.approx(0.1)
    assert any("at least 10 times more weights than random" in text for text in report.sentences(group))
    both, group = ratio(report, own=[1e-6], chance=[1e-6])
    assert both.least is None and both.most is None
    assert any("no ratio" in text for text in report.sentences(group))


@pytest.mark.parametrize(
    ("own", "chance", "words"),
    [
        (1e-5, 1e-3, "snip needs between 10 and 1000 times fewer weights than random to forget"),
        (1e-4, 1e-4, "snip needs between 10 times more and 10 times fewer weights than random to forget"),
        (1e-4, None, "snip needs at least 10 times fewer weights than random to forget"),
        (1e-3, None, "snip needs at most as many weights as random to forget"),
        (1e-3, 1e-4, "snip needs between 1 and 100 times more weights than random to forget"),
        (1e-6, 1e-5, "snip needs at most as many weights as random to forget"),
        (1e-5, 1e-6, "snip needs at least as many weights as random to forget"),
    ],
)
def test_ratios_in_words(report, own, chance, words):
    _, group = ratio(report, own=[own], chance=[chance])
    assert any(text.startswith(words) for text in report.sentences(group))


def test_differences_are_paired_over_seeds(report):
    """-0.1 and -0.3: mean -0.2, standard error 0.1; Student's t is 12.706, and of t = -2 with one degree of freedom p is 0.295."""
    rows = [
        row("random", 1e-3, 0, 0.2),
        row("random", 1e-3, 1, 0.5),
        row("snip", 1e-3, 0, 0.1),
        row("snip", 1e-3, 1, 0.2),
    ]
    rows += [row("gradient", 1e-4, 0, 0.1), row("none", 1.0, 0, 0.1)]
    [group] = report.groups(content(rows))
    head, *lines = report.differences_table(group)
    assert head[:5] == ["score", "density", "minus", "seeds", "forget"]
    assert lines == [
        ["snip", "0.001", "random", "2", "-0.200 (-1.471 to 1.071), p 0.3", *["+0.000 (0.000 to 0.000), p 1"] * 3]
    ]


def test_a_run_that_was_not_attacked_is_not_drawn_as_attacked(report):
    """Only where nothing was forgotten is it known what relearning finds."""
    rows = [row("snip", 1e-4, 0, 0.0), row("snip", 1e-3, 0, 0.59)]
    for one in rows:
        del one["relearned"]
    [group] = report.groups(content(rows, [0]))
    after = report.figure(group).axes[1]
    assert [line.get_ydata()[0] for line in after.lines if line.get_marker() == "s" and len(line.get_xdata())] == [0.8]


STUDIES = sorted((RECIPES.parent / "benchmarks" / "results").glob("patch_size*/results.json"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_the_page_of_the_evidence_has_the_committed_numbers(report, path):
    """Every line of its tables is made of the rows: a number that was typed, or whose rows changed, fails here."""
    rows = load_results(path)
    page = (RECIPES.parent / "docs" / "evidence.md").read_text(encoding="utf-8")
    lines = [
        line
        for group in report.groups(rows)
        for table in [report.table(group), report.rates_table(group)]
        + ([] if group.objective == "grad_diff" else [report.size_table(group)])
        if table
        for line in report.markdown_table(table).splitlines()
        if ":---" not in line
    ]
    assert len(lines) > 8
    assert [line for line in lines if line not in page] == []


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_committed_studies_go_on(patch_size, runs, path):
    """With the configurations that they were made with: their settings are those of the file, and rows are found."""
    for config in sorted((RECIPES / "configs").glob("patch_size*.yaml")):
        given = yaml.safe_load(config.read_text(encoding="utf-8"))
        if Path(given["output_dir"]).name != path.parent.name:
            continue
        args, data = patch_size.parse(
            ["--config", str(config)] + ["--dataset_name", "tofu"] * (given["task"] == "tofu")
        )
        study = patch_size.Study(args, runs.Rows(path, ("model", "task", "objective")), data)
        missing, _ = study.missing()
        assert missing == 0
        assert study.reference(0)["weights_digest"]


@pytest.mark.parametrize("name", ["words_elsewhere", "other_knowledge"])
def test_the_page_of_the_evidence_has_what_patches_cost(report, monkeypatch, name):
    monkeypatch.syspath_prepend(RECIPES.parent / "benchmarks")
    rows = load_results(RECIPES.parent / "benchmarks" / "results" / f"{name}.json")["rows"]
    page = (RECIPES.parent / "docs" / "evidence.md").read_text(encoding="utf-8")
    _, _, *lines = report.markdown_table(importlib.import_module(name).table(rows)).splitlines()
    assert len(lines) > 8
    assert [line for line in lines if line not in page] == []


@pytest.mark.parametrize(
    ("drawn", "copy"),
    [
        ("patch_size_deep/patch_size_facts_npo.svg", "evidence_capitals.svg"),
        ("patch_size_tofu/patch_size_tofu_npo.svg", "evidence_tofu.svg"),
    ],
)
def test_the_page_of_the_evidence_shows_the_committed_figures(drawn, copy):
    results = RECIPES.parent / "benchmarks" / "results"
    assert (RECIPES.parent / "docs" / copy).read_bytes() == (results / drawn).read_bytes()


def test_repeated_answers_have_a_column_where_they_were_measured(report):
    rows = [row("none", 1.0, 0, 0.05) | {"forget_repeated": 0.25}]
    found = content(rows, [0])
    [group] = report.groups(found)
    assert "repeated" not in report.table(group)[0]
    found["references"][0]["forget_repeated"] = 0.5
    [group] = report.groups(found)
    head, reference, dense = report.table(group)
    place = head.index("repeated")
    assert (reference[place], dense[place]) == ("0.500", "0.250")


def test_rates_of_one_mask_are_compared_where_several_seeds_have_them(report):
    rows = [
        row("snip", 1e-3, seed, forget, rate=rate, relearned=forget)
        for seed in (0, 1)
        for rate, forget in ((1e-3, 0.2), (3e-3, 0.02))
    ]
    [group] = report.groups(content([*rows, row("none", 1.0, 0, 0.1)]))
    head, *lines = report.rates_table(group)
    assert [line[:4] for line in lines] == [["snip", "0.001", "0.001", "2"], ["snip", "0.001", "0.003", "2"]]
    assert [line[head.index("relearned")] for line in lines] == ["0.200", "0.020"]
    [group] = report.groups(content(rows[:2]))
    assert report.rates_table(group) == []


def test_what_a_row_did_not_measure_is_no_difference(runs):
    assert runs.differences({"forget": 0.1}, {"forget": 0.1, "forget_repeated": 0.2, "seconds": 3}) == []
    assert runs.differences({"forget": 0.1}, {"forget": 0.2}) == ["forget was 0.1 and is 0.2"]
    for one, other in (({"failed": "nan"}, {"forget": 0.2}), ({"forget": 0.2}, {"failed": "nan"})):
        [text] = runs.differences(one, other)
        assert text.startswith("failed was ")


def test_a_score_that_misses_the_goal_has_no_ratio(report):
    found, group = ratio(report, own=[1e-4, None], chance=[1e-3, 1e-3])
    assert found is None
    assert any(
        "snip reaches the goal (to forget without losing utility) on 1 of 2 seeds" in t
        for t in report.sentences(group)
    )


def test_seeds_of_one_alone_do_not_count(report):
    rows = reaching("snip", [1e-5, 1e-4, 1e-4]) + reaching("random", [1e-3, 1e-3])
    [group] = report.groups(content(rows, range(3)))
    assert report.ratio_to_random(group, "snip", robust=False).seeds == 2


def test_lost_utility_and_relearning_count(report):
    rows = [
        row("none", 1.0, 0, 0.05, relearned=0.2),
        row("snip", 1e-3, 0, 0.05, held_out=0.44),
        row("gradient", 1e-3, 0, 0.05, relearned=0.23),
        row("wagle", 1e-3, 0, 0.05, relearned=0.21, gamma=1e-6),
    ]
    [group] = report.groups(content(rows, [0]))
    [lenient] = report.groups(content(rows, [0]), utility_loss=0.07)
    snip, gradient, wagle = rows[1:]
    assert not group.robust(snip)
    assert not group.reached(snip) and lenient.reached(snip)
    assert group.reached(gradient) and not group.robust(gradient)
    assert group.robust(wagle)


def test_shortfall_by_hand(patch_size):
    """Known 0.6, goal 0.1: forget 0.25 is 0.25 short of it as a share; unseen 0.4 of 0.5 may lose 0.05: 0.1 short."""
    missed = row("snip", 1e-3, 0, 0.25, held_out=0.4)
    expected = (0.15 / 0.6 + 0.1) + 0.1 * (0.25 / 0.6 + 0.2)
    assert patch_size.shortfall(missed, reference(0), 0.05) == pytest.approx(expected)
    reached = row("snip", 1e-3, 0, 0.06)
    assert patch_size.shortfall(reached, reference(0), 0.05) == pytest.approx(0.1 * 0.1)
    assert patch_size.shortfall({"failed": "nan"}, reference(0), 0.05) == math.inf


def test_a_mask_may_lose_what_all_weights_lose(patch_size):
    """Unseen 0.4 of 0.5, 0.42 with all weights: within 0.05 of these."""
    lost = row("snip", 1e-3, 0, 0.06, held_out=0.4)
    dense = row("none", 1.0, 0, 0.05, held_out=0.42)
    assert patch_size.shortfall(lost, reference(0), 0.05, dense) == pytest.approx(0.1 * (0.1 + 0.2))
    assert patch_size.shortfall(lost, reference(0), 0.05, row("none", 1.0, 0, 0.05, held_out=0.47)) > 0.04


def test_the_rate_that_all_seeds_were_run_with_counts(report):
    rows = [row("snip", 1e-3, 0, forget, rate=rate) for rate, forget in ((1e-4, 0.5), (1e-3, 0.05), (1e-2, 0.01))]
    rows.append(row("snip", 1e-3, 1, 0.06, rate=1e-3))
    [group] = report.groups(content(rows))
    assert {seed: found["forget"] for seed, found in group.chosen("snip", 1e-3).items()} == {0: 0.05, 1: 0.06}
    assert not group.at_edge("snip", 1e-3)
    # Run with both, the second seed would choose the other one: it has no say.
    rows.append(row("snip", 1e-3, 1, 0.0, rate=1e-4))
    [group] = report.groups(content(rows))
    assert {seed: found["forget"] for seed, found in group.chosen("snip", 1e-3).items()} == {0: 0.05, 1: 0.06}
    assert "| snip | 0.001 | 0.001 | 0.0001 to 0.01 | 2 | 0.055 |" in report.markdown_table(report.table(group))


def test_two_models_have_figures_of_their_own(report, tmp_path):
    rows = [row("snip", 1e-3, 0, 0.05), row("snip", 1e-3, 0, 0.2) | {"model": "another model"}]
    references = [reference(0), reference(0) | {"model": "another model"}]
    report.write_report({"rows": rows, "references": references, "environments": {}}, tmp_path, 0.05)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "patch_size_t_npo.png",
        "patch_size_t_npo_another-model.png",
    }


def test_report_has_figures_in_both_formats(report, tmp_path):
    rows = [row("none", 1.0, 0, 0.05), row("random", 1e-3, 0, 0.5), row("snip", 1e-3, 0, 0.05)]
    text = report.write_report(content(rows, [0]), tmp_path, 0.05)
    assert (tmp_path / "patch_size_t_npo.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "patch_size_t_npo.svg").read_bytes()
    assert b"<svg" in drawn
    assert (tmp_path / "report.md").read_text() == text
    assert (
        "(edge)" in text and "is the lowest or the highest that was tried: all weights at 1, random at 0.001" in text
    )
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "http://" not in page.replace("http-equiv", "")
    assert "*reached*" not in page and "<td>snip</td>" in page
    report.write_report(content(rows, [0]), tmp_path, 0.05)
    assert (tmp_path / "patch_size_t_npo.svg").read_bytes() == drawn, "the same rows give the same file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"densities": [1e-3, 1.0]}, "densities must be between 0 and 1"),
        ({"seeds": [0, 0]}, "seeds must hold at least one value, and none twice"),
        ({"scores": ["colour"]}, "Unknown attribution score 'colour'"),
        ({"scores": ["colour-body"]}, "Unknown attribution score 'colour'"),
        ({"objectives": ["colour"]}, "colour"),
        ({"densities": 0.1}, "densities must be a list"),
    ],
)
def test_refuses(patch_size, arguments, message):
    with pytest.raises(ValueError, match=message):
        patch_size.PatchSizeArguments(output_dir="out", **arguments)
