"""The figures that go into one report, each with its caption and what it shows in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from wagle_trainer.masking import WeightMask
from wagle_trainer.reporting import plots
from wagle_trainer.reporting.report_inputs import Metrics
from wagle_trainer.reporting.statistics import Interval
from wagle_trainer.utils.percent import percent


class Chart(NamedTuple):
    """A figure as it stands in the page.

    Attributes:
        section: where it belongs: "results", "mask" or "attacks".
        name: of its file, without ending.
        png: the picture.
        caption: what stands under it.
        alt: what it shows, for those who do not see it.
    """

    section: str
    name: str
    png: bytes
    caption: str
    alt: str


def _chart(section: str, name: str, figure: Figure, caption: str, alt: str) -> Chart:
    safe = "".join(character if character.isalnum() or character in "._-" else "_" for character in name)
    return Chart(section, safe, plots.png(figure), caption, alt)


def trade_off_chart(
    intervals: Mapping[str, Mapping[str, Interval]],
    unlearned: Sequence[str],
    forget: str,
    utility: str,
    named: Mapping[str, str],
    suite: Metrics,
) -> Chart:
    """Forgetting against utility, one point for each label."""
    points = {
        label: (found[forget], found[utility])
        for label, found in intervals.items()
        if forget in found and utility in found
    }
    axes = (
        f"{named[forget]} ({suite.forget_metrics[forget]}: more forgotten)",
        f"{named[utility]} ({suite.utility_metrics[utility]}: more kept)",
    )
    figure = plots.trade_off(
        {label: points[label] for label in unlearned},
        *axes,
        {label: place for label, place in points.items() if label not in unlearned},
    )
    words = "; ".join(f"{label} {x.mean:.3f}, {y.mean:.3f}" for label, (x, y) in points.items())
    return _chart(
        "results",
        "trade_off",
        figure,
        "Forgetting against utility. Bars are the 95 % intervals of the table.",
        f"{named[forget]}, {named[utility]} of each model: {words}.",
    )


def history_charts(histories: Mapping[str, Sequence[Mapping[str, Any]]], suite: Metrics) -> list[Chart]:
    """Forgetting and utility over the steps of each training run."""
    charts = []
    for name, history in histories.items():
        measured = {metric for entry in history for metric in entry["metrics"]}
        metrics = [
            next((m for m in group if m in measured), None) for group in (suite.forget_metrics, suite.utility_metrics)
        ]
        shown = {m: " ".join(suite.headline.get(m, (m,))) for m in metrics if m is not None}
        if not shown:
            raise ValueError(
                f"The history {name!r} has none of the numbers {', '.join([*suite.forget_metrics, *suite.utility_metrics])}; "
                f"it has {', '.join(sorted(measured)) or 'none'}. Pass the suite that they come from."
            )
        last = {m: [e["metrics"][m] for e in history if m in e["metrics"]] for m in shown}
        words = "; ".join(f"{shown[m]} from {values[0]:.3f} to {values[-1]:.3f}" for m, values in last.items())
        charts.append(
            _chart(
                "results",
                "_".join(filter(None, ("history", name))),
                plots.over_steps(history, shown),
                f"Over the steps of training{_of(name)}.",
                f"{words}, over {history[-1]['step']} steps.",
            )
        )
    return charts


def mask_charts(masks: Mapping[str, WeightMask]) -> list[Chart]:
    """Where each mask selects, and how its scores are distributed."""
    charts = []
    for name, mask in masks.items():
        summary = mask.summary()
        layers, modules, _ = plots.layer_by_module(summary)
        densest = max(summary["module"].items(), key=lambda item: item[1]["density"])
        charts.append(
            _chart(
                "mask",
                "_".join(filter(None, ("mask", name))),
                plots.mask_heat_map(summary),
                f"Selected share of the weights by layer and module{_of(name)}; grey: no weights.",
                f"Heat map of {len(modules)} modules in {len(layers)} layers; the densest module is {densest[0]} with "
                f"{percent(densest[1]['density'])} selected.",
            )
        )
        histogram = mask.info.score_histogram
        if histogram is not None and histogram["scores"]:
            threshold = histogram["threshold"]
            charts.append(
                _chart(
                    "mask",
                    "_".join(filter(None, ("scores", name))),
                    plots.score_distribution(histogram),
                    f"Distribution of the scores{_of(name)}, in factors of two.",
                    f"{mask.num_selected} weights are selected; "
                    + (f"the threshold is {threshold:.3g}." if threshold is not None else "no single threshold."),
                )
            )
    return charts


def attack_charts(attacks: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """Recovery rate of each attack on every attacked model; none where there is but one number or no rate."""
    charts = []
    for name in dict.fromkeys(attack["attack"] for found in attacks.values() for attack in found):
        same = {
            label: attack
            for label, found in attacks.items()
            for attack in found
            if attack["attack"] == name and attack["recovered"] is not None
        }
        if sum(len(attack["points"]) for attack in same.values()) <= 1:
            continue  # the table has a single number
        words = "; ".join(f"{label} {attack['recovered']:.1%}".strip() for label, attack in same.items())
        charts.append(
            _chart(
                "attacks",
                f"attack_{name}",
                plots.attack_curve(same),
                f"{name.replace('_', ' ').capitalize()}: recovery rate, the share of the forgotten knowledge that is recovered.",
                f"Highest recovery rate: {words}.",
            )
        )
    return charts


def _of(name: str) -> str:
    return f" ({name})" if name else ""
