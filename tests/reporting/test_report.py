"""The report's files, read back: the page with an HTML parser, the numbers from the results that were given."""

import base64
import copy
import json
import math
import statistics
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wagle_trainer import WeightMask
from wagle_trainer.evaluation import load_results
from wagle_trainer.evaluation.suites import get_suite
from wagle_trainer.reporting import example_interval, plots, t_interval, write_report
from wagle_trainer.reporting.examples import quantiles_for, rows_at_quantiles
from wagle_trainer.reporting.outcome import read_outcome
from wagle_trainer.reporting.statistics import as_p_value, holm

pytestmark = pytest.mark.slow

SECTIONS = ("comparisons", "masks", "attacks", "answers")


class Page(HTMLParser):
    """Tags with their attributes, visible text, and the cells of tables."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.texts, self.open = [], [], []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def has(self, section):
        return any(attributes.get("id") == section for attributes in self.all("h2"))


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_DPI", 40)  # drawing takes most of the time

    def make(results, **arguments):
        write_report(results, tmp_path / "report", **arguments)
        return Page(tmp_path / "report" / "report.html"), load_results(tmp_path / "report" / "report.json")

    return make


def test_everything_in_one_page(write, single_runs, mask, history, attacks, tmp_path):
    page, _ = write(
        single_runs, mask=mask, history=history, attacks=attacks, config={"seed": 3, "hub_token": "hf_abc"}
    )
    assert all(page.has(section) for section in ("numbers", "masks", "attacks", "answers", "reproduce"))
    assert not page.has("comparisons"), "there is one run of each"
    images = page.all("img")
    assert len(images) == 6  # trade-off, history, heat map, scores, two attacks
    assert all(image["alt"] for image in images)
    embedded = {base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images}
    assert embedded == {path.read_bytes() for path in (tmp_path / "report" / "plots").glob("*.png")}
    assert mask.digest in page.source
    assert "hf_abc" not in page.source
    assert "hf_abc" not in (tmp_path / "report" / "report.json").read_text()
    assert "torch" in page.text


def test_nothing_is_fetched(write, single_runs):
    page, _ = write(single_runs)
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert not page.all("script")
    for attributes in (attributes for _, attributes in page.tags):
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "data:").startswith(("data:", "#meaning-"))


def test_numbers_are_those_of_the_results(write, several_seeds):
    page, numbers = write(several_seeds)
    for label, runs in several_seeds.items():
        for metric in ("forget_Q_A_Prob", "model_utility", "retain_Q_A_ROUGE"):
            found = numbers["table"][label][metric]
            expected = (
                t_interval([run[metric] for run in runs]) if isinstance(runs, list) else example_interval(runs, metric)
            )
            assert found == expected._asdict()
            assert f"{expected.mean:.3f}" in page.text
            assert f"{expected.low:.3f} to {expected.high:.3f}" in page.text
    mean = statistics.mean(run["forget_Q_A_Prob"] for run in several_seeds["wagle 0.05"])
    assert (
        f"wagle 0.05: forget prob went from {several_seeds['before']['forget_Q_A_Prob']:.3f} to {mean:.3f}"
        in page.text
    )
    assert "forget_quality" not in numbers["columns"], "no run has it"


def test_comparisons_over_seeds(write, several_seeds):
    page, numbers = write(several_seeds)
    by_key = {(c["reference"], c["metric"]): c for c in numbers["comparisons"]}
    assert set(by_key) == {(r, m) for r in ("random 0.05", "no mask") for m in ("forget_Q_A_Prob", "model_utility")}
    assert by_key["random 0.05", "model_utility"]["verdict"] == "better"  # 0.85 against 0.5
    assert by_key["no mask", "model_utility"]["verdict"] == "no difference found"
    for comparison in numbers["comparisons"]:
        found, verdict = comparison["difference"], comparison["verdict"]
        cell = f"{found['mean']:+.3f} {found['low']:+.3f} to {found['high']:+.3f} {verdict}, p "
        assert cell + as_p_value(comparison["corrected_p_value"]) in page.text
        assert comparison["sentence"].startswith("wagle 0.05 ")
    assert (
        "Against “no mask”, on model utility: no difference found for wagle 0.05 (paired t-test over 3 seeds"
        in page.text
    )
    assert page.has("comparisons")


def test_families_are_corrected_together(write, several_seeds):
    several_seeds["snip 0.05"] = several_seeds["no mask"]
    pairs = [("wagle 0.05", "random 0.05"), ("snip 0.05", "random 0.05")]
    page, numbers = write(several_seeds, comparisons={"a random mask": pairs})
    assert [c["comparisons"] for c in numbers["comparisons"]] == [4] * 4, "all tests of the page"
    assert "Against a random mask, on model utility: better are wagle 0.05 and snip 0.05" in page.text
    assert "Holm-corrected for 4 comparisons" in page.text
    assert page.all("table")[1]["class"] == "comparisons"
    assert "snip 0.05 against" not in page.text, "the heading names the one reference that there is"


def test_all_families_of_a_page_are_corrected_together(write, several_seeds):
    _, numbers = write(several_seeds)  # two controls, two numbers
    p_values = [c["uncorrected_p_value"] for c in numbers["comparisons"]]
    assert len(p_values) == 4
    assert [c["corrected_p_value"] for c in numbers["comparisons"]] == holm(p_values)


def test_utility_is_compared_among_those_that_reached_the_goal(write, several_seeds):
    forgot = several_seeds["wagle 0.05"]
    goal = max(statistics.fmean(r["forget_Q_A_Prob"] for r in forgot), 0.0) + 1e-9
    for run in several_seeds["random 0.05"]:
        run["forget_Q_A_Prob"], run["per_example"]["forget"]["probability"] = 0.5, [0.5] * 12
    page, numbers = write(several_seeds, forget_goal=goal)
    verdicts = {(c["reference"], c["metric"]): c["verdict"] for c in numbers["comparisons"]}
    assert verdicts["random 0.05", "model_utility"] == "goal not reached"
    assert verdicts["random 0.05", "forget_Q_A_Prob"] in ("better", "no difference found")
    assert "random 0.05 did not reach the forget goal" in "".join(c["sentence"] for c in numbers["comparisons"])
    assert "only among models that reached the forget goal" in page.text
    said = "on model utility: not compared for wagle 0.05 (the forget goal was missed by random 0.05)."
    assert said in page.text
    _, numbers = write(several_seeds)
    assert all(c["verdict"] != "goal not reached" for c in numbers["comparisons"])


def test_numbers_of_rows_and_groups_are_said(write, single_runs):
    for run in single_runs.values():
        run["per_example"]["forget"]["group"] = [row // 4 for row in range(12)]
        run["forget_quality"] = 0.25
        run["settings"] |= {"examples": {"forget": 12}, "warnings": {"forget_quality": "is of 12 of 400 rows"}}
    page, numbers = write(single_runs)
    assert (
        "Examples: forget: 12 rows in 3 groups; retain: 15 rows; real authors: 9 rows; world facts: 10 rows"
        in page.text
    )
    assert "n = 12" in page.text
    assert "forget quality of before, after, wagle mask 0.05" in page.text
    assert numbers["warnings"][0].endswith("is of 12 of 400 rows.")
    assert numbers["counts"]["before"]["forget_Q_A_Prob"] == {"forget": {"rows": 12, "groups": 3}}


def test_intervals_over_seeds_stay_within_the_range(write, several_seeds):
    for number, run in enumerate(several_seeds["no mask"]):
        value = (0.0, 0.0, 0.03)[number]
        run["forget_Q_A_Prob"] = value
    _, numbers = write(several_seeds)
    assert numbers["table"]["no mask"]["forget_Q_A_Prob"]["low"] == 0


def test_no_secret_in_any_file(write, single_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "first-secret", "--report_to=none"])
    single_runs["before"]["settings"] |= {
        "api": {"api_key": "second-secret"},
        "data": "https://me:third-secret@host/x",
    }
    write(single_runs, config={"trackers": {"wandb": {"password": "fourth-secret"}}, "seed": 3})
    for path in (tmp_path / "report").iterdir():
        if path.is_file():
            assert "secret" not in path.read_text().replace("secrets", ""), path.name


def test_each_row_names_its_reference_where_these_differ(write, several_seeds):
    pairs = [("wagle 0.05", "random 0.05"), ("wagle 0.05", "no mask")]
    page, _ = write(several_seeds, comparisons={"the controls": pairs})
    assert "Against the controls" in page.text
    assert "wagle 0.05 against random 0.05" in page.text
    assert "wagle 0.05 against no mask" in page.text


def test_recovery_rates_are_said(write, single_runs, attacks):
    rates = ", ".join(f"{name} {attack['recovered']:.1%}" for name, attack in attacks.items())
    page, numbers = write(single_runs, attacks=attacks)
    assert f"Highest recovery rates: {rates}." in numbers["summary"]
    page, numbers = write(single_runs, attacks={"wagle": attacks, "retrained": attacks})
    for name, attack in attacks.items():
        said = "; ".join(f"{label}: {attack['recovered']:.1%}" for label in ("wagle", "retrained"))
        sentence = f"Highest recovery rate of {name}: {said}."
        assert sentence in numbers["summary"]
        assert sentence in page.text


def test_a_rate_without_a_meaning_is_not_shown(write, single_runs, attacks):
    """Where next to nothing was forgotten, noise would read as full recovery."""
    relearning = attacks["relearning"]
    noise = [{**point, "recovered": None, "recovered_raw": 1.0} for point in relearning["points"]]
    little = {**relearning, "points": noise, "recovered": None, "warning": "so little was forgotten"}
    page, numbers = write(single_runs, attacks=[little])
    assert "too little forgotten" in page.text
    assert "100.0%" not in page.text
    assert "Highest recovery rates: relearning none (too little was forgotten)." in numbers["summary"]
    assert not any("attack" in image["alt"] for image in page.all("img"))


def test_attacks_of_an_earlier_version(write, single_runs, attacks):
    old = json.loads(json.dumps(attacks).replace("recovered", "came_back"))
    assert "came_back" in old["relearning"]
    _, new = write(single_runs, attacks=attacks)
    _, former = write(single_runs, attacks=old)
    assert former["attacks"] == new["attacks"]
    assert former["summary"] == new["summary"]


def test_attacks_name_their_model(write, single_runs, attacks):
    page, _ = write(single_runs, attacks={"only this one": attacks})
    assert page.text.count("only this one") >= len(attacks) + 1


def test_texts_are_escaped(write, single_runs):
    evil = '<script>alert("1")</script> & <img src=x>'
    for run in single_runs.values():
        run["per_example"]["forget"]["question"][0] = evil
        run["per_example"]["forget"]["rouge_l_recall"] = [0.0] + [1.0] * 11
        run["forget_Q_A_ROUGE"] = 11 / 12
    page, _ = write(
        {**single_runs, evil: single_runs["after, no mask"]}, title=evil, config={evil: evil}, notes=[evil]
    )
    assert not page.all("script")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert page.text.count(evil) >= 5


def test_answers_are_chosen_by_the_rule(write, single_runs):
    page, numbers = write(single_runs)
    forget = single_runs["after, wagle mask 0.05"]["per_example"]["forget"]
    shown = [forget["question"].index(example["question"]) for example in numbers["examples"]]
    ranked = sorted(range(12), key=lambda row: (forget["rouge_l_recall"][row], row))
    assert shown == [ranked[rank] for rank in (0, 6, 11)]  # 0, 5.5 and 11, rounded
    first = numbers["examples"][0]["answers"]
    assert [answer["label"] for answer in first] == list(single_runs)
    assert first[1]["text"] == forget["generation"][ranked[0]]
    assert "quantiles 0, 0.5, 1 of the ROUGE-L recall of “after, wagle mask 0.05”" in page.text


@pytest.mark.parametrize("number", [1, 2, 3, 40])
def test_rows_at_quantiles(number):
    values = np.random.default_rng(0).permutation(number) / 7
    rows = rows_at_quantiles(values.tolist(), quantiles_for(5))
    assert len(rows) == len(set(rows)) == min(number, 5)
    assert values[rows[0]] == values.min()
    assert values[rows[-1]] == values.max()
    assert sorted(values[rows]) == list(values[rows])
    if number == 40:  # within one rank of NumPy's quantiles
        np.testing.assert_allclose(values[rows], np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), atol=1 / 7)
    assert rows_at_quantiles([0.5] * number, quantiles_for(5))[0] == 0


def test_answers_are_left_out_on_request(write, single_runs):
    page, numbers = write(single_runs, answers=0)
    assert numbers["examples"] == [] and not page.has("answers")
    assert len(write(single_runs, answers=1)[1]["examples"]) == 1
    assert quantiles_for(1) == [0.5]


def test_sampling_is_said_to_gain_by_chance(write, single_runs, attacks):
    sampling = attacks["relearning"] | {"attack": "sampling", "recovered": 0.8}
    removal = attacks["relearning"] | {"attack": "removal", "recovered": 0.9}  # with the reference model in hand
    _, numbers = write(single_runs, attacks=attacks | {"sampling": sampling, "removal": removal})
    said = "recovered by the strongest attack, sampling (the best of many answers, which chance alone makes better"
    assert said in " ".join(numbers["verdict"]["lines"])


def test_the_verdict_is_counted_from_the_examples(write, single_runs, attacks):
    before, after = (single_runs[label]["per_example"] for label in ("before", "after, wagle mask 0.05"))
    before["forget"]["probability"] = [0.9] * 11 + [0.1]  # one was not known
    after["forget"]["probability"] = [0.1] * 10 + [0.5, 0.01]  # and one is not gone
    for name in ("retain", "real_authors", "world_facts"):
        before[name]["probability"] = [0.9] * len(before[name]["probability"])
        after[name]["probability"] = [0.89] * len(before[name]["probability"])
    after["retain"]["probability"][0] = 0.5
    for run in single_runs.values():
        run.update(
            {
                name: np.mean(run["per_example"][s]["probability"])
                for name, s in (("forget_Q_A_Prob", "forget"), ("retain_Q_A_Prob", "retain"))
            }
        )
        run.pop("model_utility")
    page, numbers = write(single_runs, attacks=attacks)
    assert numbers["verdict"]["lines"] == [
        "Of 11 answers to forget that the reference model knew, out of 12 asked, 10 are gone.",
        "50% of the forgotten knowledge was recovered by the strongest attack, relearning.",
        "Of 34 other answers (retain, real authors, world facts) 33 are unchanged.",
    ]
    assert numbers["verdict"]["forgotten"] is None
    for line in (*numbers["verdict"]["lines"], numbers["verdict"]["rule"]):
        assert line in page.text
    for run in single_runs.values():
        run["per_example"]["forget"].pop("probability")
        run.pop("forget_Q_A_Prob")
    page, numbers = write(single_runs)
    assert numbers["verdict"] is None and not page.has("verdict")


VERDICT = {
    "forgotten": True,
    "sentences": ["Forgotten: 19 of 20 answers are gone.", "Next: read the report."],
    "forget": {"answers": 20, "gone": 19},
    "attacks": {"relearning": {"recovered": 0.1}},
    "patch": {
        "path": "out/adapter",
        "bytes": 4321,
        "apply": "PeftModel.from_pretrained(base, 'out/adapter')",
        "revoke": "model.unload()",
    },
    "tries": [
        {"density": 0.001, "learning_rate": 0.003, "forget": 0.5, "met": False},
        {"density": 0.01, "learning_rate": 0.003, "forget": None, "met": True},
    ],
    "versions": {"torch": "2.13.0"},
    "digests": {"adapter": "abc123"},
    "settings": {"learning_rate": 1e-3, "hub_token": "hf_secretsecret"},
}


def test_a_given_verdict_stands_at_the_top(write, single_runs):
    page, numbers = write(single_runs, verdict=VERDICT)
    assert "✓ Forgotten Forgotten: 19 of 20 answers are gone. Next: read the report." in page.text
    assert numbers["verdict"]["counts"] == {name: VERDICT[name] for name in ("forget", "attacks")}
    for shown in ("4,321", "model.unload()", "PeftModel.from_pretrained(base, 'out/adapter')", "2.13.0", "abc123"):
        assert shown in page.text
    assert "secretsecret" not in page.source + json.dumps(numbers)
    assert page.has("tries") and "1 0.001 0.003 0.500 no 2 0.01 0.003 \u2013 yes" in page.text
    page, _ = write(single_runs, verdict={"forgotten": False, "sentences": ["3 of 20 answers are gone."]})
    assert "✗ Not forgotten 3 of 20 answers are gone." in page.text
    with pytest.raises(ValueError, match="A verdict has the key 'forgotten'"):
        write(single_runs, verdict={"forget": 3})


def test_numbers_are_explained(write, single_runs, attacks, mask):
    page, numbers = write(single_runs, attacks=attacks, mask=mask)
    assert set(numbers["meanings"]) == set(numbers["columns"])
    terms = [a for a in page.all("a") if a.get("class") == "term"]
    assert len(terms) == len(numbers["columns"])
    targets = {a["id"] for a in page.all("dt") if "id" in a}
    assert {a["href"].removeprefix("#") for a in terms} == targets
    assert all(text in page.text for text in numbers["meanings"].values())
    assert "recovery rate" in numbers["glossary"] and "density" in numbers["glossary"]
    assert "p-value" not in numbers["glossary"], "there are no tests"


def test_what_is_missing_is_left_out_and_named(write):
    page, numbers = write({"a model": {"forget_Q_A_Prob": 0.25}})
    assert not any(page.has(section) for section in SECTIONS)
    assert not page.all("img")
    assert page.has("missing")
    for words in (
        "seed",
        'label "before"',
        '"retrained"',
        "EvaluationCallback",
        "trainer.mask",
        "run_attacks",
        "config",
    ):
        assert any(words in line for line in numbers["missing"]), words
    assert all(line in page.text for line in numbers["missing"])


def test_nothing_is_missing_from_a_full_report(write, several_seeds, mask, history, attacks):
    several_seeds["retrained"] = several_seeds["before"]
    by_label = {"wagle 0.05": attacks, "random 0.05": attacks}
    page, numbers = write(
        several_seeds, mask={"wagle 0.05": mask}, history={"wagle": history}, attacks=by_label, config={"seed": 1}
    )
    assert numbers["missing"] == []
    assert not page.has("missing")
    assert all(page.has(section) for section in SECTIONS)


def test_can_be_made_anew_from_its_files(write, several_seeds, mask, history, tmp_path):
    mask.save_pretrained(tmp_path / "mask")
    (tmp_path / "history.json").write_text(json.dumps(history))
    _, first = write(several_seeds, mask=tmp_path / "mask", history=tmp_path / "history.json")
    results = load_results(tmp_path / "report" / "results.json")
    assert results == several_seeds
    _, second = write(results, mask=mask, history=history)
    first["environment"]["time"] = second["environment"]["time"]
    assert first == second


def test_mask_made_by_hand_has_no_distribution(write, single_runs):
    mask = WeightMask.from_dict({"layers.0.mlp.weight": torch.eye(4, dtype=torch.bool)})
    page, numbers = write(single_runs, mask=mask)
    assert len(page.all("img")) == 2
    assert any("Distribution of the scores" in line for line in numbers["missing"])


def test_a_suite_of_ones_own(write):
    suite = SimpleNamespace(
        headline={"accuracy": ("forget", "accuracy")}, forget_metrics={"accuracy": "lower"}, utility_metrics={}
    )
    runs = {"wagle": [{"accuracy": 0.1}, {"accuracy": 0.2}], "random": [{"accuracy": 0.5}, {"accuracy": 0.61}]}
    _, numbers = write(runs, suite=suite)
    assert [c["verdict"] for c in numbers["comparisons"]] == ["better"]


def test_other_suites_have_intervals_and_answers(write):
    """MUSE's numbers are means over examples, too, and its answers stand in a set of another name."""

    def result(seed):
        random = np.random.default_rng(seed)
        sets = {
            name: {
                "question": [f"{name} {row}?" for row in range(6)],
                "answer": [f"It is {row}." for row in range(6)],
                "generation": [f"{seed} says {row}." for row in range(6)],
                "rouge_l_f1": random.random(6).tolist(),
            }
            for name in ("verbmem_forget", "knowmem_forget", "knowmem_retain")
        }
        means = {
            f"{kind}_ROUGE": statistics.fmean(sets[name]["rouge_l_f1"])
            for kind, name in (("forget_verbmem", "verbmem_forget"), ("forget_knowmem", "knowmem_forget"))
        }
        kept = statistics.fmean(sets["knowmem_retain"]["rouge_l_f1"])
        return {**means, "retain_knowmem_ROUGE": kept, "mia_min_k": 0.5, "per_example": sets}

    page, numbers = write({"before": result(1), "after": result(2)}, suite="muse")
    for metric, interval in numbers["table"]["after"].items():
        assert (interval["low"] is None) == (metric == "mia_min_k")
    assert "of the ROUGE-L F1 of “after”" in page.text
    shown = [example["question"] for example in numbers["examples"]]
    values = result(2)["per_example"]["knowmem_forget"]["rouge_l_f1"]
    assert shown[0] == f"knowmem_forget {int(np.argmin(values))}?"
    assert shown[-1] == f"knowmem_forget {int(np.argmax(values))}?"


def test_main_number_may_be_one_that_references_lack(write, several_seeds):
    """Forget quality is measured against the retrained model, which has none itself."""
    for runs in list(several_seeds.values())[1:]:
        for run in runs:
            run["forget_quality"] = run["model_utility"] / 2
    tofu = get_suite("tofu")
    suite = SimpleNamespace(
        headline=tofu.headline, forget_metrics={"forget_quality": "higher"}, utility_metrics=tofu.utility_metrics
    )
    page, numbers = write({**several_seeds, "retrained": several_seeds["before"]}, suite=suite)
    assert {c["metric"] for c in numbers["comparisons"]} == {"forget_quality", "model_utility"}
    assert "wagle 0.05: forget quality is 0." in page.text
    assert numbers["table"]["wagle 0.05"]["forget_quality"]["low"] is None, "p-values have no t-interval"
    assert len(page.all("img")) == 1


# Errors; nothing is written then


def refused(write, tmp_path, results, match, **arguments):
    with pytest.raises(ValueError, match=match):
        write(results, **arguments)
    assert not (tmp_path / "report").exists()


def test_empty_results(write, tmp_path, single_runs):
    refused(write, tmp_path, {}, "no results to report")
    refused(write, tmp_path, {"before": {}}, "results of 'before' are empty")
    refused(write, tmp_path, {**single_runs, "wagle": []}, "results of 'wagle' are empty")
    refused(write, tmp_path, single_runs["before"], "results of one evaluation, without a label")
    refused(write, tmp_path, [single_runs["before"]], "pass label -> what an evaluation returned")


def test_unequal_seeds(write, tmp_path, several_seeds):
    fewer = {**several_seeds, "no mask": several_seeds["no mask"][:2]}
    refused(write, tmp_path, fewer, "'wagle 0.05' has the seeds 0, 1, 2 and 'no mask' has the seeds 0, 1")
    shuffled = {**several_seeds, "no mask": several_seeds["no mask"][::-1]}
    refused(write, tmp_path, shuffled, "'wagle 0.05' has the seeds 0, 1, 2 and 'no mask' has the seeds 2, 1, 0")


def test_numbers_that_are_not_there(write, tmp_path, single_runs, several_seeds):
    other = {"before": {"accuracy": 0.5}}
    refused(write, tmp_path, other, "none of the numbers forget_Q_A_Prob, .*; they have accuracy. Pass the suite")
    pairs = {"controls": [("wagle 0.05", "gradient 0.05")]}
    refused(write, tmp_path, several_seeds, "No results are labelled 'gradient 0.05'", comparisons=pairs)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite(write, tmp_path, single_runs, history, attacks, bad):
    single_runs["before"]["per_example"]["retain"]["probability"][3] = bad
    where = r"results\['before'\]\['per_example'\]\['retain'\]\['probability'\]\[3\] is (nan|inf)"
    refused(write, tmp_path, single_runs, where)
    single_runs["before"]["per_example"]["retain"]["probability"][3] = 0.5
    bad_history = [*history, {"step": 12, "metrics": {"model_utility": bad}}]
    refused(write, tmp_path, {"a": {"model_utility": 0.5}}, r"history\[''\]\[6\]\['metrics'\]", history=bad_history)
    bad_attack = attacks["relearning"] | {"baseline": bad}
    refused(write, tmp_path, {"a": {"model_utility": 0.5}}, r"attacks\[''\]\[0\]\['baseline'\]", attacks=[bad_attack])


def test_other_questions(write, tmp_path, single_runs):
    single_runs["after, no mask"]["per_example"]["forget"]["question"][0] = "Another?"
    refused(write, tmp_path, single_runs, "were asked other forget questions")


def test_histories_and_attacks_of_another_shape(write, tmp_path, single_runs, attacks):
    refused(write, tmp_path, single_runs, "list of entries with 'step' and 'metrics'", history=[{"step": 1}])
    refused(
        write,
        tmp_path,
        single_runs,
        "none of the numbers .* it has loss",
        history=[{"step": 1, "metrics": {"loss": 1.0}}],
    )
    refused(write, tmp_path, single_runs, "list of entries with 'step' and 'metrics'", history={"run": {"step": 1}})
    refused(write, tmp_path, single_runs, "pass what run_attacks returned", attacks=single_runs)  # the wrong file
    no_points = attacks["relearning"] | {"points": []}
    refused(
        write, tmp_path, single_runs, "pass what run_attacks returned", attacks={"wagle": {"relearning": no_points}}
    )
    with pytest.raises(FileNotFoundError):
        write(single_runs, history=tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError):
        write(single_runs, mask=tmp_path / "nowhere")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("attack",), 0),
        (("baseline",), [None]),
        (("before",), {}),
        (("recovered",), "x"),
        (("points",), 10**29),
        (("points",), {"a": [{}]}),
        (("points", 0), {}),
        (("points", 0, "x"), 10**29),
        (("points", 0, "forget"), "x"),
        (("points", 0, "recovered"), {"a": 1}),
        (("settings",), [[1]]),
        (("settings", "measure"), 0),
    ],
)
def test_damaged_attacks_are_refused(write, tmp_path, attacks, path, value):
    damaged = copy.deepcopy(attacks["relearning"])
    place = damaged
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    refused(write, tmp_path, {"a": {"model_utility": 0.5}}, "what run_attacks returned", attacks=[damaged])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"settings": []}, r"\['settings'\], where a mapping of settings belongs"),
        ({"settings": {"suite": 3}}, r"int in \['settings'\]\['suite'\], where the name of a suite"),
        ({"settings": {"examples": 40}}, r"int in \['settings'\]\['examples'\], where a mapping of numbers"),
        ({"per_example": [1]}, r"list in \['per_example'\], where a mapping of sets"),
        ({"per_example": {"forget": [1]}}, r"list in \['per_example'\]\['forget'\], where a mapping of columns"),
        ({"per_example": {"forget": {"answer": "x"}}}, r"str in .*\['answer'\], where a list with one entry"),
    ],
)
def test_results_of_another_type_are_refused_by_the_part_that_is(write, tmp_path, damage, message):
    refused(write, tmp_path, {"after": {"forget_Q_A_Prob": 0.5} | damage}, f"'after' have .*{message}")
    refused(write, tmp_path, {"after": 3 * "x"}, "'after' are empty or no results")


@pytest.mark.parametrize("damage", [{"patch": True}, {"tries": 3}, {"sentences": "gone"}])
def test_damaged_verdicts_are_refused(damage):
    with pytest.raises(ValueError, match="another form: pass what `wagle forget` wrote"):
        read_outcome({"forgotten": True} | damage)
