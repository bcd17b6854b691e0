"""`wagle evaluate` gives what the suite gives, and `wagle report` what `write_report` gives."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer.evaluation import evaluate_tofu, load_results, save_results
from wagle_trainer.evaluation.suites import get_suite
from wagle_trainer.utils import trackers

FEW = ["--data_options", "limit=2", "--options", "max_new_tokens=3"]


@pytest.fixture(scope="module")
def by_hand(files):
    """by_hand(model) -> results of the suite on two rows of each set."""

    def measure(path, **options):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        data = get_suite("tofu").load(limit=2)
        return evaluate_tofu(model, tokenizer, data, max_new_tokens=3, progress=False, **options)

    return measure


def without_model(results):
    return {name: value for name, value in results.items() if name not in ("settings", "per_example")}


def test_rows_of_one_table(files, wagle, by_hand, tmp_path, monkeypatch):
    output, logged = tmp_path / "new" / "results.json", []
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr(trackers, "log_to_trackers", lambda *given, **options: logged.append((given, options)))
    code, out, err = wagle(
        *("evaluate", files.model, *FEW, "--label", "before", "--output", output, "--log_to", "wandb")
    )
    assert code == 0, err
    expected = by_hand(files.model)
    found = load_results(output)
    [((names, label, numbers), options)] = logged
    assert (names, label, options["folder"]) == (["wandb"], "before", output.parent)
    assert options["settings"] == {"model": files.model, "suite": "tofu"}
    assert numbers == pytest.approx(without_model(expected))
    assert list(found) == ["before"]
    assert without_model(found["before"]) == pytest.approx(without_model(expected))
    assert found["before"]["per_example"].keys() == expected["per_example"].keys()
    for name, columns in expected["per_example"].items():
        numbers = {column for column, values in columns.items() if not any(isinstance(v, str) for v in values)}
        assert found["before"]["per_example"][name].keys() == numbers | ({"group"} & columns.keys())

    reference = ["--reference", f"{output}:before"]
    code, out, _ = wagle("evaluate", files.other, *FEW, *reference, "--label", "after", "--output", output, "--json")
    assert code == 0
    [(label, row)] = json.loads(out).items()
    expected = by_hand(files.other, reference=found["before"])
    assert label == "after"
    assert without_model(row) == pytest.approx(without_model(expected))
    assert "forget_quality" in row
    assert list(load_results(output)) == ["before", "after"]
    assert load_results(output)["before"] == found["before"]

    code, out, err = wagle("evaluate", files.model, *FEW, "--label", "after", "--output", output)  # again
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines()[3:5]]
    assert rows == ["before", "after"]
    assert load_results(output)["after"]["forget_Q_A_Prob"] == found["before"]["forget_Q_A_Prob"]

    code, out, err = wagle(
        "report", output, "--title", "Two models", "--output_dir", tmp_path / "report", "--formats", "latex"
    )
    assert (code, out) == (0, f"report: {tmp_path / 'report' / 'report.html'}\n"), err
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<title>Two models" in page
    assert "before" in page
    assert (tmp_path / "report" / "table.tex").read_text().count("before") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "tofuu"], "Unknown suite 'tofuu'. Did you mean 'tofu'?"),
        (["--data_options", "limt=2"], "The data of the suite 'tofu' take no limt; they take forget_split, limit."),
        (
            ["--suite", "muse"],
            "The suite 'muse' brings no data of its own: name them with --dataset_name.",
        ),
        (["--data_options", "limit"], "'limit' is not of the form KEY=VALUE."),
        (["--data_options", "limit=0"], "limit must be at least 1"),
        (["--options", "colour=red"], "The suite 'tofu' takes no option colour; it takes batch_size, compatib"),
        (["--suite", "copyright", "--dataset_name", "x", "--reference", "r"], "leave --reference out."),
        (["--reference", "none.json"], "No such file or directory: 'none.json'"),
        (["--dataset_name", "/none"], "'/none' is neither a folder nor a dataset"),
    ],
)
def test_refused(files, wagle, arguments, message, monkeypatch):
    """And before a model is loaded."""
    monkeypatch.setattr("wagle_trainer.models.loading.load_model", None)
    code, out, err = wagle("evaluate", files.model, *arguments)
    assert (code, out) == (1, "")
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "r.json does not hold results by label: it cannot be a --reference"),
        ({"a": [{"per_example": {}}] * 2}, "'a' in {file} is not one evaluation: "),
        ({"b": {}}, "names no row of {file}, which has b: write FILE:LABEL"),
    ],
)
def test_references_that_are_none(content, message, files, wagle, tmp_path):
    save_results(content, tmp_path / "r.json")
    code, _, err = wagle("evaluate", files.model, *FEW, "--reference", f"{tmp_path / 'r.json'}:a")
    assert code == 1
    assert message.format(file=tmp_path / "r.json") in err


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(files, tmp_path):
    from peft import LoraConfig, get_peft_model

    from wagle_trainer.models.loading import load_model

    base = AutoModelForCausalLM.from_pretrained(files.model)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path))
    assert hasattr(model, "peft_config")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(files.model).get_vocab()


def test_files_of_another_kind_are_left_alone(files, wagle, tmp_path):
    save_results({"forget_Q_A_Prob": 0.5}, tmp_path / "flat.json")
    code, _, err = wagle("evaluate", files.model, *FEW, "--output", tmp_path / "flat.json")
    assert code == 1
    assert "does not hold results by label" in err
    assert load_results(tmp_path / "flat.json") == {"forget_Q_A_Prob": 0.5}
    save_results({"a": {}, "b": {}}, tmp_path / "two.json")
    for reference in (tmp_path / "two.json", f"{tmp_path / 'two.json'}:c"):
        code, _, err = wagle("evaluate", files.model, *FEW, "--reference", reference)
        assert code == 1
        assert "two.json, which has a, b: write FILE:LABEL." in err
    assert wagle("report", tmp_path / "none.json")[0] == 1
