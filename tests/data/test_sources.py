import json
from pathlib import Path

import datasets
import pytest

from wagle_trainer.data.sources import first_rows, load_rows, read_file

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
    calls, caches = [], []

    def load_dataset(*args, **kwargs):
        assert kwargs.pop("keep_in_memory")
        caches.append(kwargs.pop("cache_dir"))
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("owner/name", "ignored", config="part", split="test", columns=("text",)).to_list() == ROWS
    assert calls == [(("owner/name", "part"), {"split": "test"})]
    assert not any(Path(cache).exists() for cache in caches)  # no copy stays
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            '{"text": "a"}\n{"text": "b',
            "could not be read as jsonl: Unterminated string starting at in line 2, column 10",
        ),
        ("x.json", '[{"text": "a"},', "could not be read as json: "),
        ("x.parquet", "text", "could not be read as parquet: "),
        ("x.csv", "", "has no rows"),
        ("x.jsonl", "", "has no rows"),
        ("x.jsonl", "\n", "has no rows"),
        ("x.json", "[]", "has no rows"),
        ("x.csv", "question,answer\n", "has no rows"),
        ("x.csv", "question,answer\nWho?,A, B\n", "could not be read as csv: line 2 has not as many cells.*quotes"),
        ("x.csv", "question,answer\nWho?,A\nWhen?\n", "could not be read as csv: line 3 has not as many cells"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        read_file(tmp_path / name)
    if "json" in name:
        with pytest.raises(ValueError, match=rf"{name} {message}"):
            load_rows(str(tmp_path), "x")


def test_cells_are_text_as_they_stand(tmp_path):
    (tmp_path / "x.csv").write_text('\ufeffnumber,answer\n0171,None\n2,NA\n3,"a ""b"", c"\n4,\n', encoding="utf-8")
    assert read_file(tmp_path / "x.csv").to_list() == [
        {"number": number, "answer": answer}
        for number, answer in (("0171", "None"), ("2", "NA"), ("3", 'a "b", c'), ("4", None))
    ]


@pytest.mark.parametrize(("limit", "rows"), [(None, 4), (3, 3), (9, 4)])
def test_first_rows(limit, rows):
    assert first_rows(datasets.Dataset.from_list(ROWS), limit).to_list() == ROWS[:rows]


def test_a_limit_must_leave_a_row():
    for limit, shown in ((0, "0"), ("x", "'x'"), (2.5, "2.5")):
        with pytest.raises(ValueError, match=f"at least 1, a whole number, or None for all rows; got {shown}"):
            first_rows(datasets.Dataset.from_list(ROWS), limit)
