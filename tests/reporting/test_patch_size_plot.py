"""The figure of patch sizes: what is drawn is what it was given."""

import pytest

from wagle_trainer.reporting.patch_size_plot import Panel, PatchPoint, patch_size_plot
from wagle_trainer.reporting.plots import png


@pytest.fixture
def figure():
    curves = {
        "random": [PatchPoint(1e-4, [0.4, 0.6], True), PatchPoint(1e-3, [0.2, 0.2], True)],
        "snip": [PatchPoint(1e-4, [0.1], False)],
    }
    levels = {"reference model": 0.7, "all weights": 0.05}
    panels = [
        Panel("after unlearning", curves, levels, 0.1, "goal"),
        Panel("after relearning", curves, levels, None, ""),
    ]
    return patch_size_plot(panels, "a title", "a note", weights=1_000_000)


def test_lines_are_means_and_bands_reach_from_lowest_to_highest_seed(figure):
    left = figure.axes[0]
    lines = {tuple(line.get_xdata()): list(line.get_ydata()) for line in left.lines if len(line.get_xdata()) == 2}
    assert lines[1e-4, 1e-3] == pytest.approx([0.5, 0.2])
    band = left.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.2) and band[:, 1].max() == pytest.approx(0.6)
    assert {line.get_ydata()[0] for line in left.lines if list(line.get_xdata()) == [0, 1]} == {0.7, 0.05}


def test_hollow_where_utility_was_lost(figure):
    faces = {
        (line.get_marker(), line.get_ydata()[0]): line.get_markerfacecolor()
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 1
    }
    assert faces["s", 0.1] == "white" and faces["o", 0.5] != "white"


def test_curves_keep_their_colours_in_another_figure():
    def colours(labels):
        curves = {label: [PatchPoint(1e-3, [0.5], True)] for label in labels}
        figure = patch_size_plot([Panel("one", curves, {}, None, "")], "", "", order=["snip", "gradient"])
        return {line.get_label(): line.get_color() for line in figure.axes[0].lines if line.get_label() in labels}

    few, many = colours(["gradient", "other"]), colours(["snip", "another", "gradient"])
    assert few["gradient"] == many["gradient"]
    assert len(set(many.values())) == 3


def test_points_of_one_density_stand_side_by_side():
    curves = {name: [PatchPoint(1e-3, [0.5], True)] for name in ("random", "snip", "gradient", "fisher")}
    [axes] = patch_size_plot([Panel("one", curves, {}, None, "")], "", "").axes
    places = {float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert len(places) == 4 and 1e-3 in places


def test_any_number_of_scores_can_be_told_apart():
    curves = {f"score {index}": [PatchPoint(1e-3, [0.1 * index], True)] for index in range(14)}
    figure = patch_size_plot(
        [Panel("many", {"random": [PatchPoint(1e-3, [0.5], True)]} | curves, {}, None, "")], "", ""
    )
    looks = {(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()}
    assert len(looks) == 15
    assert png(figure).startswith(b"\x89PNG")


def test_ticks_count_weights(figure):
    png(figure)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0.01 %\n100", "0.1 %\n1 k"]


def test_only_a_goal_is_shaded(figure):
    assert [len(axes.patches) for axes in figure.axes] == [1, 0]
    assert {text.get_text().strip() for text in figure.axes[0].texts} == {"goal", "reference model", "all weights"}


def test_is_a_png_without_curves():
    assert png(patch_size_plot([Panel("empty", {}, {}, None, "")], "", "")).startswith(b"\x89PNG")
