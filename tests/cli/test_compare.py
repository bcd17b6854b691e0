"""`wagle compare`: objectives and scores from one YAML file, resumable, with its tables."""

import csv
import json

import pytest
import yaml

from wagle_trainer.data import fictional_split, fictional_tokenizer
from wagle_trainer.evaluation import load_results


@pytest.fixture(scope="module")
def folder(make_llama, tmp_path_factory):
    """A model for each seed, files to forget and to keep, and a configuration of two objectives."""
    folder = tmp_path_factory.mktemp("compare")
    tokenizer = fictional_tokenizer()
    for seed in (0, 1):
        for kind in ("full", "retrained"):
            make_llama(seed + 7 * (kind == "full"), vocab_size=len(tokenizer)).save_pretrained(
                folder / f"{kind}-{seed}"
            )
            tokenizer.save_pretrained(folder / f"{kind}-{seed}")
    for name, split in (("forget", "forget10"), ("retain", "retain90")):
        rows = fictional_split(split).select(range(4))
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model_name_or_path": f"{folder}/full-{{seed}}",
        "forget_file": f"{folder}/forget.jsonl",
        "retain_file": f"{folder}/retain.jsonl",
        "output_dir": f"{folder}/out",
        "objectives": ["grad_diff", "rmu"],
        "objective_settings": {"rmu": {"loss_kwargs": {"layer": 0}}},
        "scores": ["magnitude"],
        "densities": [0.1],
        "seeds": [0, 1],
        "learning_rates": [1e-3],
        "forget_goal": 0.5,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "processes": 1,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def compare(folder, wagle, monkeypatch):
    def run(*changes):
        monkeypatch.setattr("wagle_trainer.reporting.plots._DPI", 40)  # drawing takes long
        return wagle("compare", "--config", folder / "compare.yaml", *changes)

    return run


def test_a_comparison_of_objectives(compare, folder, monkeypatch):
    logged = {}
    monkeypatch.setattr("wagle_trainer.utils.trackers.check_trackers", lambda names: None)
    monkeypatch.setattr(
        "wagle_trainer.utils.trackers.log_to_trackers",
        lambda names, label, numbers, **options: logged.update({label: numbers}),
    )
    code, out, err = compare("--log_to", "tensorboard")
    assert code == 0, err
    rows = [f"{objective}, {mask}" for objective in ("grad_diff", "rmu") for mask in ("magnitude 0.1", "no mask")]
    assert list(logged) == ["before", *rows]
    assert all("forget_Prob" in numbers for numbers in logged.values())
    written = yaml.safe_load((folder / "out" / "config.yaml").read_text())
    assert written["objectives"] == ["grad_diff", "rmu"] and written["log_to"] == ["tensorboard"]
    results = load_results(folder / "out" / "results.json")
    assert list(results) == ["before", *rows]
    assert all(len(results[row]) == 2 for row in ("before", *rows)), "each seed has a model of its own"
    assert results["before"][0]["forget_Prob"] != results["before"][1]["forget_Prob"]
    assert results[rows[0]][0]["forget_Prob"] != results[rows[2]][0]["forget_Prob"]
    assert "Each seed has a reference model of its own" in out
    assert "Next, once it is saved" not in out + err, "a step of a comparison is no run of the user's"

    table = list(csv.DictReader((folder / "out" / "table.csv").read_text().splitlines()))
    assert [row["model"] for row in table] == ["before", *rows]
    page = json.loads((folder / "out" / "report.json").read_text())["table"]
    for row in table:
        assert float(row["forget_Prob"]) == page[row["model"]]["forget_Prob"]["mean"]
        assert row["learning rate"] == ("" if row["model"] == "before" else "0.001")
    assert float(table[1]["seconds of training"]) > 0
    markdown = (folder / "out" / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + len(table)
    assert markdown[2].startswith("| before | ")
    assert yaml.safe_load((folder / "out" / "config.yaml").read_text())["objectives"] == ["grad_diff", "rmu"]
    latex = (folder / "out" / "table.tex").read_text()
    assert latex.startswith("\\begin{tabular}{lrr")
    assert latex.count(r"\\") == 1 + len(table)


def test_it_resumes_and_grows(compare, folder):
    assert compare()[0] == 0
    runs = folder / "out" / "runs"
    before = {path.name: path.stat().st_mtime_ns for path in runs.iterdir() if path.name != "settings.json"}
    code, out, err = compare("--objectives", "grad_diff", "rmu", "grad_ascent", "--formats", "csv", "--json")
    assert code == 0, err
    assert "grad_ascent, no mask" in json.loads(out)["table"]
    after = {path.name: path.stat().st_mtime_ns for path in runs.iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1 + 4

    settings = ["--objective_settings", '{"rmu": {"loss_kwargs": {"layer": 1}}}']
    code, _, err = compare(*settings)
    assert code == 1
    assert "holds runs with other settings: objective rmu was" in err
    code, _, err = compare("--retrained_model", f"{folder}/retrained-{{seed}}")
    assert code == 1
    assert "other settings: data retrained_model was None" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objectives", "npoo"], "Unknown loss 'npoo'. Did you mean 'npo'"),
        (["--objective_settings", '{"rmu": {"layer": 1}}'], "objective_settings of 'rmu' has layer"),
        (["--objective_settings", "{"], "objective_settings is not JSON"),
        (
            ["--objective_settings", '{"rmu": {"loss_kwargs": {"layer": 0, "retain_loss": "js", "retain_layr": 1}}}'],
            "do not fit the loss 'rmu'",
        ),
        (["--formats", "xlsx"], "formats has xlsx; known are csv, markdown, latex"),
        (["--scores", "none", "--no_dense"], "give at least one score"),
        (["--use_peft"], "leave out --use_peft"),
        (["--forget_metric", "forget_quality"], "no metric 'forget_quality' for this"),
    ],
)
def test_refused_before_any_run(compare, folder, arguments, message, tmp_path):
    code, _, err = compare(*arguments, "--output_dir", tmp_path / "other")
    assert code in (1, 2)
    assert message in err
    assert not list(tmp_path.glob("other/runs/seed*"))
