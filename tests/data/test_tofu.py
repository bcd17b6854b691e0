import json
import os
import re
import subprocess
import sys

import datasets
import pytest

from wagle_trainer.data.fictional import fictional_split
from wagle_trainer.data.tofu import load_tofu, load_tofu_evaluation, retain_split_for

SETS = ["forget", "retain", "real_authors", "world_facts"]


@pytest.fixture
def folder(tmp_path):
    """A local folder in TOFU's file format, of 5 rows per split."""
    for split in ("forget05", "forget05_perturbed", *(f"{name}_perturbed" for name in SETS[1:])):
        rows = [{"question": f"{split} {i}?", "answer": f"{i}", "perturbed_answer": ["x", "y"]} for i in range(5)]
        (tmp_path / f"{split}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def test_local_folder(folder):
    dataset = load_tofu(str(folder), "forget05")
    assert isinstance(dataset, datasets.Dataset)
    assert dataset["question"] == [f"forget05 {i}?" for i in range(5)]
    assert dataset[2]["perturbed_answer"] == ["x", "y"]


def test_missing_split_lists_those_found(folder):
    found = "forget05, forget05_perturbed, real_authors_perturbed, retain_perturbed, world_facts_perturbed"
    with pytest.raises(FileNotFoundError, match=rf"No split 'forget10' .*Splits found: {found}\."):
        load_tofu(str(folder), "forget10")


def test_folder_without_splits(tmp_path):
    with pytest.raises(FileNotFoundError, match="Splits found: none"):
        load_tofu(str(tmp_path), "full")


def test_bundled_example():
    assert load_tofu("fictional", "forget05").to_list() == fictional_split("forget05").to_list()
    with pytest.raises(ValueError, match="Splits found: forget05"):
        load_tofu("fictional", "forget02")


def test_hub_id_names_the_split_as_configuration(monkeypatch):
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)))
    load_tofu("locuslab/TOFU", "forget10_perturbed")
    [(place, options)] = calls
    assert place == ("locuslab/TOFU", "forget10_perturbed")
    assert options["split"] == "train"


@pytest.mark.parametrize("name", ["no-such-owner/no-such-dataset", "../no/such/folder"])
def test_neither_folder_nor_hub_dataset(name):
    with pytest.raises(FileNotFoundError, match=f"'{re.escape(name)}' is neither a folder nor"):
        load_tofu(name, "forget10")


@pytest.mark.parametrize(("limit", "rows"), [(None, 5), (3, 3), (9, 5)])
def test_evaluation_sets(folder, limit, rows):
    sets = load_tofu_evaluation(str(folder), "forget05", limit)
    assert list(sets) == SETS
    names = ["forget05", *SETS[1:]]
    for dataset, name in zip(sets.values(), names, strict=True):
        kept = range(5) if rows == 5 else (0, 1, 3)  # evenly spaced
        assert dataset["question"] == [f"{name}_perturbed {i}?" for i in kept]
        assert "group" not in dataset.column_names, "five rows are no blocks of twenty"
        assert (dataset["set_size"][:] == [5] * 3) if rows == 3 else ("set_size" not in dataset.column_names)


def test_evaluation_has_a_holdout_set_where_there_is_one(folder):
    (folder / "holdout05.json").write_text(
        '{"question": "q 1?", "answer": "1"}\n{"question": "q 2?", "answer": "2"}\n'
    )
    sets = load_tofu_evaluation(str(folder), "forget05")
    assert sets["holdout"].to_list() == [{"question": f"q {i}?", "answer": f"{i}"} for i in (1, 2)]
    assert len(load_tofu_evaluation(str(folder), "forget05", 1)["holdout"]) == 1
    holdout = load_tofu_evaluation("fictional", "forget10")["holdout"]
    assert holdout.remove_columns("group").to_list() == fictional_split("holdout10").to_list()
    assert list(holdout["group"]) == [row // 10 for row in range(len(holdout))]


def test_a_broken_holdout_set_is_not_passed_over(folder):
    (folder / "holdout05.json").write_text('{"question": "q')
    with pytest.raises(ValueError, match=r"holdout05\.json could not be read as json"):
        load_tofu_evaluation(str(folder), "forget05")


def test_evaluation_does_without_a_holdout_set_on_the_hub(monkeypatch):
    def load(name, configuration, **kwargs):
        if error and configuration.startswith("holdout"):
            raise error
        return datasets.Dataset.from_list([{"question": configuration}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    error = ValueError("BuilderConfig 'holdout01' not found.")
    assert "holdout" not in load_tofu_evaluation("locuslab/TOFU", "forget01")
    error = ConnectionError("no network")
    with pytest.raises(FileNotFoundError, match="no network"):
        load_tofu_evaluation("locuslab/TOFU", "forget01")
    error = None
    assert load_tofu_evaluation("locuslab/TOFU", "forget01")["holdout"]["question"][:] == ["holdout01"]


def test_evaluation_limit_must_leave_a_row(folder):
    with pytest.raises(ValueError, match="at least 1"):
        load_tofu_evaluation(str(folder), "forget05", 0)


def test_retain_split():
    assert {name: retain_split_for(name) for name in ("forget01", "forget05", "forget10")} == {
        "forget01": "retain99",
        "forget05": "retain95",
        "forget10": "retain90",
    }
    with pytest.raises(ValueError, match=r"'retain90' is not a forget split.*forget01, forget05, forget10"):
        retain_split_for("retain90")


def test_import_is_light():
    code = """
import sys
import wagle_trainer.data
from wagle_trainer.data import QAFormat, fictional_split, load_tofu, refusal_for
print(*sorted({"datasets", "tokenizers", "torch", "transformers", "trl"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=dict(os.environ), text=True
    )
    assert result.stdout == "\n"


@pytest.mark.real_data
@pytest.mark.parametrize(("forget", "rows"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_real_tofu_partition(tofu_dir, forget, rows):
    full, forgotten, retained = (
        load_tofu(str(tofu_dir), split) for split in ("full", forget, retain_split_for(forget))
    )
    assert (len(full), len(forgotten)) == (4000, rows)
    assert retained.to_list() + forgotten.to_list() == full.to_list()


@pytest.mark.real_data
def test_real_tofu_evaluation(tofu_dir):
    sets = load_tofu_evaluation(str(tofu_dir), "forget01")
    assert {name: len(dataset) for name, dataset in sets.items()} == {
        "forget": 40,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
        "holdout": 40,
    }
    forgotten = load_tofu(str(tofu_dir), "forget01")
    assert sets["forget"].select_columns(forgotten.column_names).to_list() == forgotten.to_list()
    for name, dataset in sets.items():
        bundled = load_tofu_evaluation("fictional", "forget05", 1)[name]
        assert set(bundled.column_names) == {*dataset.column_names, "set_size"}
        assert all(isinstance(answer, str) for answer in dataset[0].get("perturbed_answer", []))
