import json

import datasets
import pytest

from wagle_trainer.data.sources import first_rows, load_rows

ROWS = [{"text": f"text {i}", "other": i} for i in range(4)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "list.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("file", ["lines", "deep/list"])
def test_lines_or_a_list_with_either_ending(folder, file):
    assert load_rows(str(folder), file, columns=("text",)).to_list() == ROWS


def test_a_missing_file_is_named_with_its_kin(folder):
    with pytest.raises(
        FileNotFoundError, match=r"No split 'lost' in .*deep \(looked for deep/lost\.json.*found: list\."
    ):
        load_rows(str(folder), "deep/lost")


def test_a_missing_column_is_named_with_the_file(folder):
    with pytest.raises(ValueError, match=r"lines\.jsonl has no column 'prompt'\. Columns found: text, other\."):
        load_rows(str(folder), "lines", columns=("text", "prompt"))


def test_hub_configuration_and_split(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("owner/name", "ignored", config="part", split="test", columns=("text",)).to_list() == ROWS
    assert calls == [(("owner/name", "part"), {"split": "test"})]
    with pytest.raises(ValueError, match="'owner/name', configuration 'part', has no column 'prompt'"):
        load_rows("owner/name", "ignored", config="part", columns=("prompt",))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_dict({"text": []}))
    with pytest.raises(ValueError, match="'owner/name' has no rows"):
        load_rows("owner/name", "ignored", columns=("text",))


def test_neither_folder_nor_hub_dataset():
    with pytest.raises(
        FileNotFoundError, match=r"'no/such' is neither a folder nor.*with the file part/x\.json, or y\."
    ):
        load_rows("no/such", "part/x", hint=", or y")


@pytest.mark.parametrize(("limit", "rows"), [(None, 4), (3, 3), (9, 4)])
def test_first_rows(limit, rows):
    assert first_rows(datasets.Dataset.from_list(ROWS), limit).to_list() == ROWS[:rows]


def test_a_limit_must_leave_a_row():
    with pytest.raises(ValueError, match="at least 1, or None for all rows; got 0"):
        first_rows(datasets.Dataset.from_list(ROWS), 0)
