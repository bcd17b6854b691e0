"""The table of a report as files, and `results_table` in the same formats."""

import csv

import pytest

from wagle_trainer.evaluation import results_table
from wagle_trainer.reporting.result_tables import write_tables

PAGE = {
    "columns": {"forget_Q_A_Prob": ("forget", "prob"), "forget_quality": ("forget", "quality")},
    "table": {
        "before": {"forget_Q_A_Prob": {"mean": 1 / 3, "low": 0.25, "high": 0.5}},
        "after": {
            "forget_Q_A_Prob": {"mean": 0.1, "low": None, "high": None},
            "forget_quality": {"mean": 3.1e-11, "low": None, "high": None},
        },
    },
}


def test_three_files(tmp_path):
    files = write_tables(PAGE, tmp_path / "new", more={"learning rate": {"after": 1e-3}})
    assert [file.name for file in files] == ["table.csv", "table.md", "table.tex"]
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert float(rows[0]["forget_Q_A_Prob"]) == 1 / 3
    assert (rows[0]["forget_Q_A_Prob_low"], rows[0]["forget_quality"], rows[0]["learning rate"]) == ("0.25", "", "")
    assert (float(rows[1]["forget_quality"]), rows[1]["learning rate"]) == (3.1e-11, "0.001")
    lines = files[1].read_text().splitlines()
    assert lines[2:] == ["| before | 0.333 [0.250, 0.500] | - | - |", "| after | 0.100 | 3.1e-11 | 0.001 |"]
    assert r"before & 0.333 [0.250, 0.500] & - & - \\" in files[2].read_text()


def test_formats_that_are_requested(tmp_path):
    assert [file.name for file in write_tables(PAGE, tmp_path, ["latex"])] == ["table.tex"]
    with pytest.raises(ValueError, match="Unknown format xlsx: tables are written as csv, markdown, latex"):
        write_tables(PAGE, tmp_path, ["xlsx"])


def test_results_table():
    results = {"before": {"forget_Q_A_Prob": 1 / 3}, "after": {}}
    columns = {"forget_Q_A_Prob": ("forget", "prob")}
    assert results_table(results, columns, "csv") == f"model,forget_Q_A_Prob\nbefore,{1 / 3!r}\nafter,\n"
    assert results_table(results, columns, "markdown").splitlines()[2] == "| before | 0.333 |"
    assert r"before & 0.333 \\" in results_table(results, columns, "latex")
    assert "before   0.333" in results_table(results, columns)
    with pytest.raises(ValueError, match="Unknown format 'xlsx'"):
        results_table(results, columns, "xlsx")
