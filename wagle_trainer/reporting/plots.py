"""The figures of a report. Each function returns a matplotlib `Figure` of its own; no global setting is changed for good.

Figures are narrow (4.8 inches), so that their text is legible on a telephone and two stand side by side on a desk.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from wagle_trainer.reporting.statistics import Interval
from wagle_trainer.utils.percent import percent

_WIDTH, _HEIGHT, _DPI = 4.8, 3.4, 200
_TEXT, _SMALL = 10, 9  # points
_SMALL_PATCH = 0.01  # share of the weights
_LEGEND = 27  # characters of a line
_SELECTED, _OTHER, _LINE = "#D55E00", "#9aa5b1", "#333333"
# Okabe and Ito's palette, which colour-blind readers can tell apart; without its yellow, which is faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8B5A2B")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_CROWDED = 4  # so many points may share the axes with references that lie far from them
_PALETTE = 128
# White to blue, so that turned dark it runs from black to light; grey where there are no weights.
_SHARES = colormaps["Blues"].with_extremes(bad="#bdbdbd")


def png(figure: Figure) -> bytes:
    """A figure as a PNG, with few colours so that it is small."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def svg(figure: Figure) -> bytes:
    """A figure as an SVG: its text stays text, and the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "wagle", "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def trade_off(
    points: Mapping[str, tuple[Interval, Interval]],
    forget: str,
    utility: str,
    references: Mapping[str, tuple[Interval, Interval]] | None = None,
) -> Figure:
    """Forgetting against utility: one point for each variant, with 95 % intervals.

    With many points, the axes show these alone, and references outside are named in the legend.

    Labels that differ in a last number alone, such as "wagle 0.05" and "wagle 0.2", share a colour and are joined.

    Args:
        points: label -> (forget metric, utility metric).
        forget, utility: names of the axes.
        references: further points, drawn hollow: the reference model, the retrained one.
    """
    groups: dict[str, list[str]] = {}
    for label in points:
        groups.setdefault(_without_number(label), []).append(label)
    figure, axes = _figure(forget, utility)
    for index, labels in enumerate(groups.values()):
        colour = _COLOURS[index % len(_COLOURS)]
        places = [[interval.mean for interval in points[label]] for label in labels]
        axes.plot(*zip(*places, strict=True), color=colour, linewidth=0.8, alpha=0.6)
        shift = index // len(_COLOURS)  # where colours come again, markers tell the points apart
        for label, marker in zip(labels, _MARKERS[shift:] + _MARKERS * len(labels), strict=False):
            _point(axes, points[label], label, color=colour, marker=marker)
    limits = (axes.get_xlim(), axes.get_ylim()) if len(points) > _CROWDED else None
    for index, (label, place) in enumerate((references or {}).items()):
        if limits and not all(low <= i.mean <= high for (low, high), i in zip(limits, place, strict=True)):
            label += f" (outside: {place[0].mean:.2f}, {place[1].mean:.2f})"
        _point(axes, place, label, color=_LINE, marker=_MARKERS[-1 - index % 3], markerfacecolor="none", markersize=8)
    if limits:
        axes.set(xlim=limits[0], ylim=limits[1])
    _legend_below(figure, axes)
    return figure


def _point(axes: Axes, place: tuple[Interval, Interval], label: str, **style: Any) -> None:
    x, y = place
    errors = [None if i.low is None or i.high is None else [[i.mean - i.low], [i.high - i.mean]] for i in (x, y)]
    axes.errorbar(
        x.mean, y.mean, xerr=errors[0], yerr=errors[1], label=label, linestyle="none", elinewidth=0.8, capsize=2,
        **({"markersize": 6} | style),
    )  # fmt: skip


def over_steps(history: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> Figure:
    """Numbers over the steps of a training run.

    Args:
        history: entries {"step": int, "metrics": {name: value}}, as `EvaluationCallback` writes them.
        metrics: name -> what to call it. Entries without a number are skipped.
    """
    figure, axes = _figure("step", "")
    for index, (name, label) in enumerate(metrics.items()):
        found = [(entry["step"], entry["metrics"][name]) for entry in history if name in entry["metrics"]]
        if found:
            axes.plot(
                *zip(*found, strict=True), marker=_MARKERS[index], markersize=4, color=_COLOURS[index], label=label
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(figure, axes)
    return figure


def layer_by_module(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[list[str], list[str], Any]:
    """Layers, modules, and the selected share of the weights of each module in each layer; NaN where there is none.

    Args:
        summary: what `WeightMask.summary()` gives. What lies outside the layers makes up the last one, "outside".
    """
    selected: dict[tuple[str, str], list[float]] = {}
    for name, counts in summary["tensor"].items():
        parts = name.split(".")
        layer = next((part for part in parts if part.isdigit()), "outside")
        module = parts[-2] if len(parts) > 1 else name
        both = selected.setdefault((layer, module), [0, 0])
        both[0] += counts["selected"]
        both[1] += counts["total"]
    layers = sorted({layer for layer, _ in selected}, key=lambda layer: (layer == "outside", len(layer), layer))
    modules = list(dict.fromkeys(module for _, module in selected))
    shares = np.full((len(modules), len(layers)), np.nan)
    for (layer, module), (chosen, total) in selected.items():
        shares[modules.index(module), layers.index(layer)] = chosen / max(total, 1)
    return layers, modules, shares


def mask_heat_map(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Density of a mask by layer and module, from `WeightMask.summary()`; low densities take up more of the colours."""
    layers, modules, shares = layer_by_module(summary)
    figure, axes = _figure("layer", "", extra=max(0.0, 0.2 * len(modules) - 2.2))
    image = axes.imshow(shares, aspect="auto", cmap=_SHARES, norm=PowerNorm(0.5, vmin=0), interpolation="nearest")
    axes.set_yticks(range(len(modules)), modules)
    every = math.ceil(len(layers) / 12)
    shown = [i for i, layer in enumerate(layers) if layer == "outside" or (i % every == 0 and i < len(layers) - every)]
    shown = list(range(len(layers))) if every == 1 else shown
    axes.set_xticks(shown, ["out" if layers[i] == "outside" else layers[i] for i in shown])
    bar = figure.colorbar(image, ax=axes, format=FuncFormatter(lambda share, _: percent(share)))
    bar.ax.tick_params(labelsize=_SMALL)
    bar.set_label("selected", fontsize=_TEXT)
    return figure


def score_distribution(histogram: Mapping[str, Any]) -> Figure:
    """How the scores of the selected and of the other weights are distributed, with the threshold.

    Args:
        histogram: `mask.info.score_histogram`. Zero scores have no place on the logarithmic axis; their share is
            written.
    """
    figure, axes = _figure("score", "weights")
    scores, selected = (np.array(histogram[key], dtype=float) for key in ("scores", "selected"))
    left = 2.0 ** (histogram["first_exponent"] + np.arange(len(scores)))
    axes.set_xscale("log")
    if selected.sum() < _SMALL_PATCH * scores.sum():
        axes.set_yscale("log")  # else the selected weights are not to be seen
    axes.bar(left, scores, width=left, align="edge", color=_OTHER, label="all weights")
    axes.bar(left, selected, width=left, align="edge", color=_SELECTED, label="selected")
    if histogram["threshold"]:
        axes.axvline(histogram["threshold"], color=_LINE, linestyle="--", linewidth=1, label="threshold")
    if zeros := histogram["zero_scores"]:
        axes.set_title(f"{zeros:,} scores are zero (not shown)", fontsize=_SMALL)
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    _legend_below(figure, axes)
    return figure


def attack_curve(attacks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Recovery rate of one attack over its strength; rates without a meaning are left out.

    Args:
        attacks: label of the unlearned model -> {"attack", "unit", "points": [{"x", "recovered"}, ...]}; the same attack.
    """
    first = next(iter(attacks.values()))
    name, unit = first["attack"], first.get("unit", "strength")
    figure, axes = _figure(f"{name.replace('_', ' ')}: {unit}", "recovery rate")
    numbers = all(isinstance(p["x"], int | float) for attack in attacks.values() for p in attack["points"])
    for index, (label, attack) in enumerate(attacks.items()):
        x, y = [point["x"] for point in attack["points"]], [point["recovered"] for point in attack["points"]]
        colour = _COLOURS[index % len(_COLOURS)]
        if numbers and len(x) > 1:
            axes.plot(x, y, marker=_MARKERS[index % len(_MARKERS)], markersize=4, color=colour, label=label)
            if all(isinstance(value, int) for value in x):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            places = np.arange(len(x)) + 0.8 * (index - (len(attacks) - 1) / 2) / len(attacks)
            bars = axes.bar(places, y, width=0.7 / len(attacks), color=colour, label=label)
            axes.bar_label(bars, [f"{share:.0%}" for share in y], fontsize=_SMALL)  # a bar of 0 % is not to be seen
            axes.set_xticks(range(len(x)), [str(value) for value in x])
    axes.set_ylim(-0.02, 1.08)
    if len(attacks) > 1:
        _legend_below(figure, axes)
    return figure


def _figure(x: str, y: str, extra: float = 0.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; `extra` inches of height beyond the usual."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT + extra), dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_xlabel(x, fontsize=_TEXT)
    axes.set_ylabel(y, fontsize=_TEXT)
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend_below(figure: Figure, axes: Axes) -> None:
    """A legend under the axes, for which the figure grows."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) > 14 else 3
    wrapped = [textwrap.fill(label, _LEGEND) for label in labels]
    rows = math.ceil(len(labels) / columns)
    heights = [sum(label.count("\n") + 1 for label in wrapped[i : i + rows]) for i in range(0, len(labels), rows)]
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.19 * max(heights, default=0))
    figure.legend(handles, wrapped, loc="outside lower center", ncols=columns, fontsize=_SMALL, frameon=False)


def _without_number(label: str) -> str:
    head, _, last = label.rpartition(" ")
    return head if head and last.replace(".", "", 1).isdigit() else label


def _short(number: float, _: int) -> str:
    """12 k or 3.5 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
