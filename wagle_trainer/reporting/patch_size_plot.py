"""The figure of a study of patch sizes: what is still known against how many weights may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from wagle_trainer.reporting.plots import _COLOURS, _MARKERS, _SMALL, _TEXT, _short

_GREY, _DARK, _GREEN = "#777777", "#222222", "#009E73"
_ASIDE = 0.035  # decades between the points of one density
_LEVEL_STYLES = {"all weights": (_DARK, "--"), "never knew": (_GREEN, "-.")}


@dataclass(frozen=True)
class PatchPoint:
    """One score at one density.

    Attributes:
        density: share of the weights that may change.
        values: what is still known, of each seed.
        kept: whether utility was kept; drawn hollow where it was not.
    """

    density: float
    values: Sequence[float]
    kept: bool


@dataclass(frozen=True)
class Panel:
    """One half of the figure.

    Attributes:
        title: what was measured when.
        curves: score -> its points, in order of density. "random" is drawn in grey.
        levels: horizontal lines by name, such as the reference model and all weights.
        good_below: values up to here are good; shaded. None: nothing is.
        good: what the shade means.
    """

    title: str
    curves: Mapping[str, Sequence[PatchPoint]]
    levels: Mapping[str, float]
    good_below: float | None
    good: str


def patch_size_plot(
    panels: Sequence[Panel], title: str, note: str, weights: int | None = None, order: Sequence[str] = ()
) -> Figure:
    """What is still known against the patch size: a line for each score, a band from lowest to highest seed.

    Args:
        panels: drawn side by side with one y axis.
        title, note: above and below.
        weights: of the whole model; then ticks also give numbers of weights.
        order: of curves, for colours and markers that are the same in several figures; others come after them.
    """
    labels = dict.fromkeys([*order, *(label for panel in panels for label in panel.curves if label != "random")])
    styles = {label: index for index, label in enumerate(labels)}
    shown = [label for label in styles if any(label in panel.curves for panel in panels)]
    # Points of one density stand side by side: 1, -1, 2, -2, ... steps from random's.
    shifts = {label: 10 ** (_ASIDE * (place // 2 + 1) * (-1) ** place) for place, label in enumerate(shown)}
    figure = Figure(figsize=(9.6, 4.6), dpi=160, layout="constrained", facecolor="white")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    densities = sorted({p.density for panel in panels for points in panel.curves.values() for p in points})
    for axes, panel in zip(row, panels, strict=True):
        axes.set_xscale("log")
        if densities:
            axes.set_xlim(densities[0] / 2, densities[-1] * 2)
        _draw(axes, panel, styles, shifts)
        axes.xaxis.set_major_locator(FixedLocator(densities) if len(densities) < 8 else LogLocator(numticks=9))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: _tick(share, weights)))
        axes.set_title(panel.title, fontsize=_TEXT)
        axes.set_xlabel("weights that may change", fontsize=_TEXT)
        axes.tick_params(labelsize=_SMALL)
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel("still known: probability of the\nanswers to forget (lower is better)", fontsize=_TEXT)
    row[0].set_ylim(bottom=-0.04 * row[0].get_ylim()[1])
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=_SMALL, frameon=False, title=note, title_fontsize=_SMALL)  # fmt: skip
    figure.suptitle(title, fontsize=_TEXT, fontweight="bold")
    return figure


def _draw(axes: Axes, panel: Panel, styles: Mapping[str, int], shifts: Mapping[str, float]) -> None:
    if panel.good_below is not None:
        axes.axhspan(-1, panel.good_below, color=_GREEN, alpha=0.12, linewidth=0)
        _write(axes, panel.good_below, f"{panel.good} ", _GREEN, "bottom", "right")
    for label, value in panel.levels.items():
        colour, line = _LEVEL_STYLES.get(label, (_GREY, ":"))
        axes.axhline(value, color=colour, linestyle=line, linewidth=1.2)
        below = label == "all weights" and any(
            0 <= other - value < 0.08 for other in panel.levels.values() if other != value
        )
        _write(axes, value, f" {label}", colour, "top" if below else "bottom", "left")
    for label, points in panel.curves.items():
        if label == "random":
            colour, marker = _GREY, "o"
        else:
            style = styles[label]
            colour, marker = _COLOURS[style % len(_COLOURS)], _MARKERS[1 + style % (len(_MARKERS) - 1)]
        x = [point.density * shifts.get(label, 1.0) for point in points]
        means = [sum(point.values) / len(point.values) for point in points]
        axes.fill_between(
            x, [min(p.values) for p in points], [max(p.values) for p in points], color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(x, means, color=colour, linewidth=2)
        axes.plot([], [], marker, color=colour, linestyle="-", label=label)  # in the legend, its marker filled
        for place, mean, point in zip(x, means, points, strict=True):
            face = colour if point.kept else "white"
            axes.plot(place, mean, marker, color=colour, markersize=7, markerfacecolor=face, zorder=3)
            if len(point.values) > 1:
                axes.vlines(place, min(point.values), max(point.values), color=colour, linewidth=1)


def _write(axes: Axes, height: float, text: str, colour: str, vertical: str, side: str) -> None:
    place = 0.0 if side == "left" else 1.0
    axes.text(
        place, height, text, color=colour, fontsize=_SMALL, ha=side, va=vertical, transform=axes.get_yaxis_transform(),
        zorder=4, bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def _tick(share: float, weights: int | None) -> str:
    percent = f"{100 * share:.6g} %"
    return percent if weights is None else f"{percent}\n{_short(share * weights, 0).strip()}"
