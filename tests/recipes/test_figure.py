"""recipes/figure.py: what it draws, and the pages that hold its tables and figures."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import figure
import pytest

PAGES = Path(__file__).parents[2] / "docs" / "applications"
RUN = re.compile(r"<!-- run: (\w+) -->\n(.*?)<!-- end -->", re.S)


def result(toxic, surprise):
    columns = {"toxicity": [1.0] * toxic + [0.0] * (8 - toxic)}
    return {
        "toxicity": toxic / 8,
        "toxicity_ratio": toxic / 8,
        "max_toxicity": 1.0,
        "general_perplexity": 2.718281828459045**surprise,
        "per_example": {"prompts": columns, "general": {"log_prob": [-surprise] * 4}},
        "settings": {"suite": "detoxification", "threshold": 0.5, "missing": {}},
    }


RESULTS = {"before": result(8, 0.5), "after, wagle mask 0.1": result(2, 0.6), "after, no mask": result(0, 1.0)}


def test_what_is_forgotten_and_what_is_kept(tmp_path):
    drawn, words = figure.draw(RESULTS)
    assert "mean toxicity: before = 1; after, wagle mask 0.1 = 0.25; after, no mask = 0." in words
    assert "general perplexity: before = 1.65; after, wagle mask 0.1 = 1.82; after, no mask = 2.72." in words
    forgotten, kept = drawn.axes
    dots = [line for line in forgotten.lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in dots] == [1.0, 0.25, 0.0]
    assert forgotten.get_xlabel() == "mean toxicity (lower: more forgotten)"
    assert kept.get_xlabel() == "general perplexity (lower: more kept)"
    figure.save(drawn, tmp_path / "one.svg")
    figure.save(figure.draw(RESULTS)[0], tmp_path / "other.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    assert "after, wagle mask 0.1" in "".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext())


def test_a_page_gets_the_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- run: detox_po -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    figure.update_page(page, "detox_po", "new \\1", "![words](a.svg)")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(
        "before\n<!-- run: detox_po -->\n\n```\nnew \\1\n```\n\n![words](a.svg)\n\n<!-- end -->\nafter"
    )
    with pytest.raises(ValueError, match="no place for the run 'wmdp_npo'"):
        figure.update_page(page, "wmdp_npo", "", "")


def test_results_of_something_else():
    for results in ({}, {"lr": 1}, [1]):
        with pytest.raises(ValueError, match="not the results of a recipe"):
            figure.metrics_of_run(results)


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_pages_have_the_table_and_the_figure_of_their_run(page):
    """The numbers under a figure are those of its table."""
    runs = RUN.findall(page.read_text(encoding="utf-8"))
    assert runs
    for name, content in runs:
        [(words, file)] = re.findall(r"!\[(.+?)\]\((\w+\.svg)\)", content)
        drawing = PAGES / file
        assert drawing.stat().st_size < 40_000, name
        labels = "".join(ElementTree.parse(drawing).getroot().itertext())
        rows = re.findall(r"^(before|after, .+?|retrained without the forget set)  +(.+)$", content, re.M)
        assert len(rows) >= 4, name
        for label, numbers in rows:
            assert label in labels
            shown = [float(v) for v in re.findall(rf"{re.escape(label)} = (\d+(?:\.\d+)?(?:e[+-]\d+)?)", words)]
            printed = [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]\d+)?", numbers)]
            assert len(shown) == 2, (name, label)
            assert all(any(abs(value - number) <= 0.006 * max(1, number) for number in printed) for value in shown)
