import json
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from wagle_trainer.evaluation import (
    add_results,
    get_suite,
    load_results,
    load_results_by_label,
    push_results,
    results_table,
    save_results,
)


def test_round_trip_makes_the_folder(tmp_path):
    results = {
        "forget_Q_A_Prob": 0.1 + 0.2,
        "per_example": {"forget": {"question": ["Où ?"], "probability": [1e-300]}},
    }
    path = tmp_path / "new" / "results.json"
    save_results(results, path)
    assert load_results(path) == results
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_not_a_number_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    save_results({"forget_Q_A_Prob": 0.5}, path)
    with pytest.raises(ValueError, match="nan"):
        save_results({"forget_Q_A_Prob": float("nan")}, path)
    assert json.loads(path.read_text()) == {"forget_Q_A_Prob": 0.5}


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "half.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match="half.json is not the JSON that save_results writes"):
        load_results(tmp_path / "half.json")


def test_table_is_aligned_and_complete():
    before = {
        "forget_Q_A_Prob": 0.98765,
        "forget_Q_A_ROUGE": 1.0,
        "forget_truth_ratio": 0.5,
        "extraction_strength": 0.75,
        "retain_Q_A_Prob": 0.875,
        "retain_Q_A_ROUGE": 0.9,
        "model_utility": 0.6,
        "forget_quality": 1.2345e-12,
        "retain_Truth_Ratio": 0.1111,  # not in the selection
    }
    table = results_table({"before": before, "after (wagle)": {"forget_Q_A_Prob": 0.01, "forget_quality": 0.05}})
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["forget"] * 3 + ["extraction", "retain", "retain", "model", "forget"]
    assert lines[1].split() == [
        "prob",
        "ROUGE-L",
        "truth",
        "ratio",
        "strength",
        "prob",
        "ROUGE-L",
        "utility",
        "quality",
    ]
    assert lines[3].split() == ["before", "0.988", "1.000", "0.500", "0.750", "0.875", "0.900", "0.600", "1.2e-12"]
    assert lines[4].split() == ["after", "(wagle)", "0.010", "-", "-", "-", "-", "-", "-", "0.050"]


def test_table_of_another_suite():
    numbers = {"seen_ROUGE": 0.5, "seen_exact_match": 0.25, "unseen_perplexity": 12.3456}
    lines = results_table({"before": numbers}, get_suite("copyright").headline).splitlines()
    assert lines[0].split() == ["seen", "seen", "seen", "unseen", "unseen", "general"]
    assert lines[1].split() == ["ROUGE-L", "exact", "prefix", "ROUGE-L", "perplexity", "perplexity"]
    assert lines[3].split() == ["before", "0.500", "0.250", "-", "-", "12.346", "-"]


def test_secrets_in_settings_are_not_saved(tmp_path):
    token = "hf_" + "a" * 30
    results = {
        "after": {
            "x": 0.5,
            "settings": {"model": f"https://me:{token}@host/m", "options": {"hub_token": "abc"}},
            "per_example": {"forget": {"question": [token]}},
        }
    }
    save_results(results, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "abc" not in text
    assert text.count(token) == 1, "examples stay as they are"
    assert load_results(tmp_path / "results.json")["after"]["x"] == 0.5


@pytest.mark.parametrize("depth", [101, 900, 200_000])  # what the parser takes ends the functions that go through it
def test_nested_too_deeply(depth, tmp_path):
    (tmp_path / "deep.json").write_text("[" * depth + "]" * depth)
    with pytest.raises(ValueError, match="deep.json is nested too deeply"):
        load_results(tmp_path / "deep.json")


MANY = 20_000  # times the pattern: some hundred kilobytes
PATTERNS = {
    "numbers": "0.12345678901234567,",
    "empty lists": "[],",
    "empty sets": "{},",
    "lists within each other": "[" * 90 + "]" * 90 + ",",
    "sets within each other": '{"":' * 90 + "0" + "}" * 90 + ",",
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_memory_is_bounded_by_the_size_of_the_file(pattern, tmp_path):
    """Python's objects take more than their text: at most 60 times, whatever a damaged file claims; SECURITY.md says so."""
    text = PATTERNS[pattern] * (MANY * 3 // len(PATTERNS[pattern]) + 1)
    path = tmp_path / "results.json"
    path.write_text('{"after": [' + text + "0]}")
    tracemalloc.start()
    load_results(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (4 if pattern == "numbers" else 60) * path.stat().st_size + 100_000


ADD = """
import sys
from wagle_trainer.evaluation import add_results
for number in range(15):
    add_results(f"{sys.argv[2]} {number}", {"x": number}, sys.argv[1])
"""


@pytest.mark.slow
def test_several_processes_add_to_one_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    processes = [subprocess.Popen([sys.executable, "-c", ADD, path, f"process {index}"]) for index in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(load_results(path)) == 45
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_file_that_holds_no_results_is_left_alone(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match="does not hold results by label"):
        add_results("after", {}, path)
    assert path.read_text() == "[1]"


# On the Hub


def test_results_of_a_reference_model_are_shared(monkeypatch, tmp_path):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            uploaded["token"] = token

        def create_repo(self, repo_id, **options):
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            for path in Path(folder_path).iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    examples = {"forget": {"question": ["Who?"], "generation": ["Someone."], "probability": [0.25]}}
    results = {"retrained": {"forget_Q_A_Prob": 0.25, "per_example": examples, "settings": {"api_key": "secret"}}}
    assert push_results(results, "reference", token="t") == "https://hub/me/reference"
    shared = (tmp_path / "results.json").read_text() + (tmp_path / "README.md").read_text()
    assert not any(text in shared for text in ("Who?", "Someone", "secret"))
    assert "| forget_Q_A_Prob | 0.25 |" in shared and "0.25" in shared

    def download(repo_id, name, revision=None):
        assert (repo_id, name) == ("me/reference", "results.json")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = load_results("me/reference")
    assert found["retrained"]["per_example"]["forget"] == {"probability": [0.25]}
    with pytest.raises(FileNotFoundError):
        load_results("nowhere/results.json")
    with pytest.raises(ValueError, match="takes label -> what an evaluation returned"):
        push_results({"forget_Q_A_Prob": 0.25}, "reference")


def test_five_hundred_accidents(damage, tmp_path):
    """Results are plain JSON, so an altered digit is not noticed; what is no JSON is refused by name."""
    path, draw, refused = tmp_path / "results.json", random.Random(0), 0
    save_results(
        {"after": {"forget_Prob": 0.5, "settings": {"style": "plain"}, "per_example": {"a": {"b": [1.5]}}}}, path
    )
    content = path.read_bytes()
    for _ in range(500):
        path.write_bytes(damage(content, draw))
        error = None
        try:
            load_results(path)
        except ValueError as refusal:
            error = str(refusal)
        assert error is None or str(path) in error
        refused += error is not None
    assert 250 < refused < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [1], "results.json does not hold results by label"),
        (lambda r: {"after": 0.5}, "'after' is not what an evaluation returns"),
        (lambda r: {"after": r["after"] | {"settings": []}}, "results of 'after', settings is no set of names"),
        (lambda r: {"after": r["after"] | {"settings": {"warnings": 1}}}, "settings.warnings is no set of names"),
        (lambda r: {"after": [r["after"] | {"per_example": 1}]}, "per_example is no set of names"),
        (lambda r: {"after": r["after"] | {"per_example": {"a": [1]}}}, "per_example.a is no set of names"),
        (lambda r: {"after": r["after"] | {"per_example": {"a": {"b": 1}}}}, "per_example.a.b is no list of numbers"),
        (
            lambda r: {"after": r["after"] | {"per_example": {"a": {"b": [{}]}}}},
            "per_example.a.b is no list of numbers",
        ),
        (
            lambda r: {"after": r["after"] | {"per_example": {"a": {"b": [1, "x"]}}}},
            "per_example.a.b is no list of numbers",
        ),
        (
            lambda r: {"after": r["after"] | {"per_example": {"a": {"b": [1], "c": []}}}},
            "the lists of per_example.a differ",
        ),
        (lambda r: {"after": r["after"] | {"forget_Prob": 10**400}}, "forget_Prob is too large to be a metric"),
    ],
)
def test_results_of_another_form_are_refused_by_place(change, message, tmp_path):
    results = {"after": {"forget_Prob": 0.5, "settings": {"style": "plain"}, "per_example": {"a": {"b": [1.5, None]}}}}
    path = tmp_path / "results.json"
    save_results(results, path)
    assert load_results_by_label(path) == results
    path.write_text(json.dumps(change(results)))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_results_by_label(path)
