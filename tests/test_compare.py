"""recipes/compare.py: the rule for learning rates against brute force, and a whole comparison on a tiny model."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wagle_trainer import WagleTrainer, WeightMask
from wagle_trainer.comparison import forget_goal, pick
from wagle_trainer.comparison.learning_rate_rule import RETRAINED
from wagle_trainer.evaluation import get_suite, load_results

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="module", autouse=True)
def recipes():
    """Recipes import each other by their bare names, as they do when they are run."""
    sys.path.insert(0, str(RECIPES))
    yield
    sys.path.remove(str(RECIPES))


@pytest.fixture(scope="module")
def compare(recipes):
    return importlib.import_module("compare")


@pytest.fixture(scope="module")
def compare_runs(recipes):
    return importlib.import_module("compare_runs")


RULE = SimpleNamespace(
    suite=get_suite("tofu"),
    forget_metric="forget_Q_A_Prob",
    utility_metric="model_utility",
    forget_goal=None,
    forget_share=0.9,
)


def result(forgotten, utility):
    return {"forget_Q_A_Prob": forgotten, "model_utility": utility}


# Eighths, so that means are exact and ties happen.
EIGHTHS = st.integers(0, 8).map(lambda n: n / 8)
RUNS = st.dictionaries(
    st.sampled_from([1e-4, 3e-4, 1e-3, 3e-3]),
    st.lists(st.one_of(st.builds(result, EIGHTHS, EIGHTHS), st.just({"failed": "inf"})), min_size=2, max_size=2),
)


@given(by_rate=RUNS, goal=EIGHTHS)
def test_the_learning_rate_that_counts(by_rate, goal):
    usable = {
        rate: [sum(run[name] for run in runs) / 2 for name in ("forget_Q_A_Prob", "model_utility")]
        for rate, runs in by_rate.items()
        if all("failed" not in run for run in runs)
    }
    found = pick(by_rate, goal, RULE)
    if not usable:
        assert found is None
        return
    reaching = {rate for rate, (forgotten, _) in usable.items() if forgotten <= goal}
    if reaching:
        best = max(usable[rate][1] for rate in reaching)
        expected = min(rate for rate in reaching if usable[rate][1] == best)
    else:
        best = min(forgotten for forgotten, _ in usable.values())
        expected = min(rate for rate, (forgotten, _) in usable.items() if forgotten == best)
    assert found == (expected, bool(reaching), by_rate[expected])


def test_a_forget_metric_that_is_better_higher():
    rule = SimpleNamespace(**{**vars(RULE), "forget_metric": "forget_quality"})
    by_rate = {
        1e-3: [{"forget_quality": 0.9, "model_utility": 0.1}],
        1e-4: [{"forget_quality": 0.1, "model_utility": 0.9}],
    }
    assert pick(by_rate, 0.05, rule)[:2] == (1e-4, True)
    assert pick(by_rate, 0.5, rule)[:2] == (1e-3, True)
    assert pick(by_rate, 0.95, rule)[:2] == (1e-3, False)


def test_a_perplexity_is_kept_where_it_is_low():
    rule = SimpleNamespace(
        suite=get_suite("copyright"), forget_metric="seen_ROUGE", utility_metric="general_perplexity", forget_goal=None
    )
    by_rate = {
        1e-4: [{"seen_ROUGE": 0.2, "general_perplexity": 3.0}],
        1e-3: [{"seen_ROUGE": 0.1, "general_perplexity": 5.0}],
    }
    assert pick(by_rate, 0.3, rule)[:2] == (1e-4, True)


def test_goal():
    retrained = RETRAINED
    references = {"before": [result(0.9, 1), result(1.0, 1)], retrained: [result(0.1, 1), result(0.2, 1)]}
    assert forget_goal(references, RULE) == pytest.approx(0.95 - 0.9 * 0.8)
    given_one = SimpleNamespace(**{**vars(RULE), "forget_goal": 0.3})
    assert forget_goal({}, given_one) == 0.3
    with pytest.raises(ValueError, match="give --forget_goal, or a --retrained_model"):
        forget_goal({"before": references["before"]}, RULE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [1, 1]}, "seeds has a value twice"),
        ({"densities": []}, "densities is empty"),
        ({"densities": [0.5, 5.0]}, r"densities must be in \(0, 1\]"),
        ({"scores": ["wagle", "wangle"]}, "'wangle'.*wagle"),
        ({"attacks": ["relearn"]}, "'relearn'.*relearning"),
        ({"task": "tofoo"}, "Unknown task 'tofoo'. Known: .*tofu"),
        ({"forget_metric": "model_utility"}, "no metric 'model_utility' for this. It has: forget_Q_A_Prob"),
    ],
)
def test_arguments_that_make_no_comparison(compare_runs, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_runs.CompareArguments(**arguments)


@pytest.fixture(scope="module")
def start(compare, make_llama, tmp_path_factory):
    """start(*changes) -> runs the recipe on a tiny model; a second call goes on in the same folder, unless told another."""
    from wagle_trainer.data import fictional_tokenizer

    folder = tmp_path_factory.mktemp("compare")
    tokenizer = fictional_tokenizer()
    model = make_llama(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    def run(*changes):
        options = (
            f"--model_name_or_path {folder}/model --retrained_model {folder}/model --output_dir {folder}/out "
            "--evaluation_samples 2 --processes 1 --scores wagle random --densities 0.1 --seeds 0 1 --max_steps 1 "
            "--learning_rates 1e-3 --attribution_samples 4 --use_cpu --disable_tqdm true --report_to none"
        )
        goal = [] if "--forget_metric" in changes else ["--forget_goal", "0.5"]
        patch = pytest.MonkeyPatch()
        patch.setattr(sys, "argv", ["compare.py", *options.split(), *goal, *map(str, changes)])
        patch.setattr("wagle_trainer.reporting.plots._DPI", 40)  # drawing takes long
        try:
            compare.main()
        finally:
            patch.undo()
        return folder / "out"

    return run


@pytest.fixture(scope="module")
def compared(start):
    return start()


def runs_in(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


def test_every_variant_and_seed_has_a_run(compared):
    names = {
        f"seed {s}, {v}, learning rate 0.001.json" for s in (0, 1) for v in ("wagle 0.1", "random 0.1", "no mask")
    }
    references = {"seed 0, before.json", f"seed 0, {RETRAINED}.json"}
    assert set(runs_in(compared)) == {*names, *references, "settings.json"}
    results = load_results(compared / "results.json")
    assert list(results) == ["before", "wagle 0.1", "random 0.1", "no mask", RETRAINED]
    assert [run["settings"]["seed"] for run in results["random 0.1"]] == [0, 1]
    masks = {label: [run["settings"].get("mask") for run in results[label]] for label in list(results)[1:4]}
    assert (
        masks["wagle 0.1"][0]
        == masks["wagle 0.1"][1]
        == WeightMask.from_pretrained(compared / "masks/wagle 0.1").digest
    )
    assert masks["random 0.1"][0] != masks["random 0.1"][1], "the seed draws the random mask"
    assert masks["no mask"] == [None, None]
    numbers = [run["forget_Q_A_Prob"] for run in results["no mask"]]
    assert numbers[0] != numbers[1] != results["before"]["forget_Q_A_Prob"], "seeds train in different orders"


def test_its_report_says_what_was_compared(compared):
    page = json.loads((compared / "report.json").read_text())
    families = {c["family"]: (c["label"], c["reference"]) for c in page["comparisons"]}
    assert families["a random mask of the same density"] == ("wagle 0.1", "random 0.1")
    assert families["no mask"] == ("random 0.1", "no mask")
    assert {c["seeds"] for c in page["comparisons"]} == {2}
    assert "All seeds start from the same model" in page["notes"][0]
    assert "forget goal of 0.5" in page["notes"][1]
    assert set(page["masks"]) == {"wagle 0.1", "random 0.1"}
    assert "<img" in (compared / "report.html").read_text()


def test_what_is_there_is_not_run_again(compared, start, monkeypatch):
    before = runs_in(compared)
    (compared / "runs" / "seed 1, no mask, learning rate 0.001.json").unlink()
    trained = []

    class Counting(WagleTrainer):
        def train(self, *arguments, **kwargs):
            trained.append((self.args.seed, self.args.attribution))
            return super().train(*arguments, **kwargs)

    monkeypatch.setattr("wagle_trainer.comparison.runs.WagleTrainer", Counting)
    start()
    assert trained == [(1, None)]
    after = runs_in(compared)
    assert set(after) == set(before)
    assert [name for name in before if after[name] != before[name]] == ["seed 1, no mask, learning rate 0.001.json"]


def test_no_goal_is_noticed_before_the_variants_run(compared, start, compare_runs, monkeypatch):
    """The retrained model has no forget quality, so there is no way to it to take a share of."""
    monkeypatch.setattr(compare_runs.Runs, "run", lambda *arguments: pytest.fail("a variant ran"))
    monkeypatch.setattr(compare_runs.Runs, "missing", lambda *arguments: [1e-3])
    with pytest.raises(ValueError, match="share of the distance of forget_quality"):
        start("--forget_metric", "forget_quality")


def test_other_settings_are_not_mixed_in(compared, start):
    with pytest.raises(ValueError, match="holds runs with other settings: max_steps was 1 and is 2. Give another"):
        start("--max_steps", 2)


def test_a_learning_rate_that_breaks_the_model(compared, start, compare_runs, monkeypatch):
    def measure(self, model, seed, qa, **settings):
        raise FloatingPointError("set 'forget', row 0: not finite")

    monkeypatch.setattr(compare_runs.Runs, "measure", measure)
    start("--learning_rates", 1e-3, 1.0, "--seeds", 0, "--scores", "wagle", "--no_dense")
    failed = load_results(compared / "runs" / "seed 0, wagle 0.1, learning rate 1.json")
    assert "row 0: not finite" in failed["failed"]
    assert "wagle 0.1: 0.001" in json.loads((compared / "report.json").read_text())["notes"][1]


@pytest.fixture(scope="module")
def attacked(start, compared, tmp_path_factory):
    """A comparison with attacks, from a model that was fine-tuned on the bundled people, and one on all but some."""
    finetune = importlib.import_module("tofu_finetune")
    folder = tmp_path_factory.mktemp("attacked")
    for split in ("full", "retain90"):
        options = (
            f"--model_name_or_path {compared.parent}/model --dataset_name fictional --split {split} "
            f"--output_dir {folder}/{split} --max_steps 100 --learning_rate 5e-3 --per_device_train_batch_size 24 "
            "--save_strategy no --report_to none --disable_tqdm true"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tofu_finetune.py", *options.split()])
            finetune.main()
    changes = f"--model_name_or_path {folder}/full --retrained_model {folder}/retain90 --output_dir {folder}/out"
    start(*changes.split(), "--scores", "random", "--max_steps", 3, "--attacks", "relearning", "relearning_unrelated")
    return folder / "out"


@pytest.mark.slow
def test_finetuning_teaches_the_split_and_nothing_else(attacked):
    full, retrained = (load_results(attacked / "runs" / f"seed 0, {name}.json") for name in ("before", RETRAINED))
    assert full["retain_Q_A_Prob"] > 0.3
    assert retrained["retain_Q_A_Prob"] > 0.3
    assert full["forget_Q_A_Prob"] > 2 * retrained["forget_Q_A_Prob"]


@pytest.mark.slow
def test_attacks_are_on_what_reached_the_goal_and_on_the_retrained(attacked):
    page = json.loads((attacked / "report.json").read_text())
    results = load_results(attacked / "results.json")
    for label in ("random 0.1", "no mask"):
        shares = [
            load_results(attacked / "runs" / f"seed {seed}, {label}, relearning 0.0001, learning rate 0.001.json")[
                "recovered"
            ]
            for seed in (0, 1)
        ]
        assert [run["relearning_recovered"] for run in results[label]] == shares
        if None in shares:  # too little was forgotten for a rate
            assert "relearning_recovered" not in page["table"][label]
        else:
            assert page["table"][label]["relearning_recovered"]["mean"] == pytest.approx(sum(shares) / 2)
    assert set(page["attacks"]) == {f"{label} (seed 0)" for label in ("random 0.1", "no mask", RETRAINED)}
    assert "relearning_unrelated_recovered" in results[RETRAINED]
    assert "relearning_recovered" not in results["before"]
    assert page["columns"]["relearning_recovered"] == ["relearning", "recovered"]


def test_attacks_can_be_added_where_nothing_was_forgotten_too(start, compared, compare_runs, monkeypatch):
    """The retrained model of these runs is the reference model; the runs themselves stay as they are."""
    before = runs_in(compared)
    monkeypatch.setattr(compare_runs.Runs, "attack_variant", lambda *_: None)  # seen above
    start("--attacks", "relearning_unrelated", "--relearning_rate", 2e-4)
    name = f"seed 0, {RETRAINED}, relearning_unrelated 0.0002.json"
    assert load_results(compared / "runs" / name) == {}
    assert {path: time for path, time in runs_in(compared).items() if path != name} == before
    assert "relearning_unrelated" in json.loads((compared / "report.json").read_text())["notes"][-1]
