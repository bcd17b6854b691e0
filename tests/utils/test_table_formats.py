"""CSV by reading it again; Markdown and LaTeX by what must not break them."""

import csv
import io
import re

from hypothesis import given
from hypothesis import strategies as st

from wagle_trainer.utils.table_formats import csv_table, latex_table, markdown_table

CELLS = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=8)
ROWS = st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=4)


@given(ROWS)
def test_csv_is_read_as_it_was(rows):
    assert list(csv.reader(io.StringIO(csv_table(rows), newline=""))) == rows


@given(ROWS)
def test_markdown_has_as_many_cells(rows):
    lines = markdown_table(rows).split("\n")[:-1]
    assert len(lines) == len(rows) + 1
    assert {len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in lines if "\\" not in line} <= {4}


def test_latex():
    assert latex_table([["", "50 %"], ["a_b & c", "1"]]) == (
        "\\begin{tabular}{lr}\n\\toprule\n & 50 \\% \\\\\n\\midrule\na\\_b \\& c & 1 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


@given(ROWS)
def test_latex_escapes_what_means_something(rows):
    body = latex_table(rows).splitlines()[2]
    for character in "%#$_":
        assert body.count(character) == body.count(f"\\{character}")
