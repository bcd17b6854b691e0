"""The answer of the study of patch sizes: a figure, a table, and the smallest patch of each score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from wagle_trainer.utils.atomic_files import write_atomically

Row = Mapping[str, Any]
CLOSE = 0.02  # of probability: what counts as no worse than all weights
COLOURS = ("#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B5A2B")
MARKERS = "osD^vPX*"


def label_of(row: Row) -> str:
    """What a variant is called."""
    if row["score"] == "none":
        return "all weights"
    return row["score"] if row["gamma"] is None else f"{row['score']}, gamma {row['gamma']}"


@dataclass(frozen=True)
class Group:
    """One model, task and objective."""

    model: str
    task: str
    objective: str
    rows: tuple[Row, ...]
    references: Mapping[int, Row]

    def labels(self) -> list[str]:
        """Scores, random first."""
        found = dict.fromkeys(label_of(row) for row in self.rows if row["score"] != "none")
        return sorted(found, key=lambda label: label != "random")

    def densities(self, label: str) -> list[float]:
        """Those that a score was run with."""
        return sorted({row["density"] for row in self.rows if label_of(row) == label})

    def chosen(self, label: str, density: float) -> dict[int, Row]:
        """Seed -> row, at the learning rate that most seeds were run with: the one that the first seed chose."""
        same = [row for row in self.rows if label_of(row) == label and row["density"] == density]
        rates: dict[float, dict[int, Row]] = {}
        for row in same:
            rates.setdefault(row["learning_rate"], {})[row["seed"]] = row
        if not rates:
            return {}
        most = max(map(len, rates.values()))
        candidates = {rate: rows for rate, rows in rates.items() if len(rows) == most}
        return candidates[min(candidates, key=lambda rate: self._badness(candidates[rate]))]

    def rates(self, label: str, density: float) -> list[float]:
        """Learning rates that were tried."""
        return sorted({r["learning_rate"] for r in self.rows if label_of(r) == label and r["density"] == density})

    def at_edge(self, label: str, density: float) -> bool:
        """Whether the chosen learning rate is the lowest or the highest that was tried."""
        rates = self.rates(label, density)
        [rate] = {row["learning_rate"] for row in self.chosen(label, density).values()}
        return rate in (rates[0], rates[-1])

    def reached(self, row: Row, utility_loss: float) -> bool:
        """Whether a run forgot, and lost no utility."""
        reference = self.references[row["seed"]]
        return (
            "failed" not in row
            and row["forget"] <= row["goal"]
            and all(row[name] >= reference[name] - utility_loss for name in ("retain", "held_out"))
        )

    def robust(self, row: Row, utility_loss: float) -> bool:
        """Whether a run forgot and is no worse than all weights: in what it keeps, after relearning and in 4 bits."""
        dense = self.chosen("all weights", 1.0).get(row["seed"])
        if "failed" in row or row["forget"] > row["goal"] or "relearned" not in row:
            return False
        if dense is None or "relearned" not in dense:
            return False
        reference = self.references[row["seed"]]
        return (
            all(row[n] >= min(reference[n], dense[n]) - utility_loss for n in ("retain", "held_out"))
            and row["relearned"] <= dense["relearned"] + CLOSE
            and row["quantized"]["4"]["forget"] <= dense["quantized"]["4"]["forget"] + CLOSE
        )

    def smallest(self, label: str, seed: int, utility_loss: float, robust: bool) -> float | None:
        """The smallest density at which a score reaches the goal on a seed; None if at none."""
        holds = self.robust if robust else self.reached
        for density in self.densities(label):
            row = self.chosen(label, density).get(seed)
            if row is not None and holds(row, utility_loss):
                return density
        return None

    def _badness(self, rows: Mapping[int, Row]) -> float:
        total = 0.0
        for seed, row in rows.items():
            if "failed" in row:
                return math.inf
            reference = self.references[seed]
            lost = sum(max(0.0, 1 - row[name] / reference[name]) for name in ("retain", "held_out"))
            total += row["forget"] / reference["forget"] + lost
        return total / len(rows)


def groups(content: Mapping[str, Any]) -> list[Group]:
    """The rows of results.json by model, task and objective."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in content["rows"]:
        found.setdefault((row["model"], row["task"], row["objective"]), []).append(row)
    return [
        Group(
            *key,
            tuple(rows),
            {r["seed"]: r for r in content["references"] if (r["model"], r["task"]) == key[:2]},
        )
        for key, rows in found.items()
    ]


@dataclass(frozen=True)
class Ratio:
    """How many times more weights random needs: geometric mean over seeds with its 95 % interval.

    Attributes:
        bound: random reached the goal at no density on some seed, where a tenfold of its largest one stands for it: the
            ratio is a lower bound then.
    """

    mean: float
    low: float
    high: float
    seeds: int
    bound: bool


def ratio_to_random(group: Group, label: str, utility_loss: float, robust: bool) -> Ratio | None:
    """Of the smallest densities, seed by seed; None where the score itself misses the goal on some seed."""
    seeds = sorted(set(group.references) & {row["seed"] for row in group.rows if label_of(row) == label})
    logs, bound = [], False
    for seed in seeds:
        own = group.smallest(label, seed, utility_loss, robust)
        if own is None:
            return None
        densities = [d for d in group.densities("random") if seed in group.chosen("random", d)]
        if not densities:
            return None
        chance = group.smallest("random", seed, utility_loss, robust)
        bound |= chance is None
        logs.append(math.log10((10 * densities[-1] if chance is None else chance) / own))
    if not logs:
        return None
    mean = float(np.mean(logs))
    half = 0.0
    if len(logs) > 1:
        half = float(student_t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / math.sqrt(len(logs)))
    else:
        half = math.inf
    return Ratio(10**mean, 10 ** (mean - half) if half < 300 else 0.0, 10 ** min(mean + half, 300), len(logs), bound)


def figure(group: Group, utility_loss: float) -> Figure:
    """Forgetting and relearning against the patch size: a line for each score, bands from lowest to highest seed."""
    drawn = Figure(figsize=(9.6, 4.2), dpi=160, layout="constrained", facecolor="white")
    left, right = drawn.subplots(1, 2, sharey=True)
    for axes, metric, title in ((left, "forget", "after unlearning"), (right, "relearned", "after relearning")):
        for index, label in enumerate(group.labels()):
            _line(axes, group, label, metric, index, utility_loss)
        _levels(axes, group, metric)
        axes.set_xscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("share of the weights that may change", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("probability of the answers to forget", fontsize=10)
    left.set_ylim(bottom=0)
    handles, labels = left.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    seeds = len({row["seed"] for row in group.rows})
    drawn.suptitle(
        f"{group.model}, {group.task}, {group.objective}; {seeds} seeds; hollow: retained or unseen answers lost more than {utility_loss:g}",
        fontsize=9,
    )
    return drawn


def _line(axes: Axes, group: Group, label: str, metric: str, index: int, utility_loss: float) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    x, low, mean, high, kept = [], [], [], [], []
    for density in group.densities(label):
        rows = [row for row in group.chosen(label, density).values() if "failed" not in row]
        values = [_level(group, row, metric) for row in rows]
        if values:
            x.append(density)
            low.append(min(values))
            high.append(max(values))
            mean.append(sum(values) / len(values))
            lost = [
                sum(group.references[r["seed"]][name] - r[name] for r in rows) / len(rows)
                for name in ("retain", "held_out")
            ]
            kept.append(max(lost) <= utility_loss)
    axes.plot(x, mean, color=colour, linewidth=1.5)
    axes.plot([], [], marker, color=colour, linestyle="-", label=label)  # in the legend, its marker filled
    for place, value, full in zip(x, mean, kept, strict=True):
        axes.plot(place, value, marker, color=colour, markersize=6, markerfacecolor=colour if full else "white")
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _level(group: Group, row: Row, metric: str) -> float:
    """What is known; a run that forgot nothing was not attacked: there it is what the reference model knows."""
    if metric in row:
        return row[metric]
    return max(row["forget"], group.references[row["seed"]]["relearned"])


def _levels(axes: Axes, group: Group, metric: str) -> None:
    reference = [row[metric] for row in group.references.values() if metric in row]
    if reference:
        axes.axhline(sum(reference) / len(reference), color="#999999", linestyle=":", label="reference model")
    retrained = [row[f"retrained_{metric}"] for row in group.references.values() if f"retrained_{metric}" in row]
    if retrained:
        axes.axhline(sum(retrained) / len(retrained), color="#009E73", linestyle="-.", label="never knew")
    dense = [_level(group, row, metric) for row in group.chosen("all weights", 1.0).values() if "failed" not in row]
    if dense:
        axes.axhline(sum(dense) / len(dense), color="#222222", linestyle="--", label="all weights")


def table(group: Group, utility_loss: float) -> str:
    """Markdown: one row for each score and density at its chosen rate, means over seeds."""
    head = [
        *("score", "density", "lr", "rates tried", "seeds", "forget", "paraphrased", "retain", "unseen"),
        *("relearned", "8 bits", "4 bits", "reached", "robust", "patch, kB"),
    ]
    lines = [head, ["---"] * len(head)]
    reference = list(group.references.values())
    lines.append(
        [
            *("*reference*", "", "", "", str(len(reference))),
            *(_mean(reference, name) for name in ("forget", "forget_paraphrased", "retain", "held_out", "relearned")),
            *(_mean([r["quantized"][bits] for r in reference], "forget") for bits in ("8", "4")),
            *("", "", ""),
        ]
    )
    for label in ["all weights", *group.labels()]:
        for density in group.densities(label):
            rows = list(group.chosen(label, density).values())
            if not rows:
                continue
            good = [row for row in rows if "failed" not in row]
            attacked = [row["quantized"] for row in good if "quantized" in row]
            rates = group.rates(label, density)
            rate = rows[0]["learning_rate"]
            edge = " (edge)" if group.at_edge(label, density) else ""
            lines.append(
                [
                    *(label, f"{density:g}", f"{rate:g}{edge}", f"{rates[0]:g} to {rates[-1]:g}", str(len(rows))),
                    *(_mean(good, n) for n in ("forget", "forget_paraphrased", "retain", "held_out", "relearned")),
                    *(_mean([q[bits] for q in attacked], "forget") for bits in ("8", "4")),
                    f"{sum(group.reached(r, utility_loss) for r in rows)}/{len(rows)}",
                    f"{sum(group.robust(r, utility_loss) for r in rows)}/{len(rows)}",
                    f"{good[0]['patch_bytes'] / 1000:,.0f}" if good else "-",
                ]
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows if name in row]
    if not values:
        return "-"
    note = "" if len(values) == len(rows) else f" ({len(values)})"
    return f"{sum(values) / len(values):.3f}{note}"


def sentences(group: Group, utility_loss: float) -> list[str]:
    """What the data say of each score beside random."""
    found = []
    for label in group.labels():
        if label == "random":
            continue
        for robust, what in (
            (False, "to forget"),
            (True, "to forget, keep and withstand relearning and 4 bits as well as all weights"),
        ):
            ratio = ratio_to_random(group, label, utility_loss, robust)
            if ratio is None:
                found.append(f"{label}: the goal ({what}) is missed on some seed at every density.")
                continue
            interval = (
                f"95 % interval {ratio.low:.3g} to {ratio.high:.3g}" if ratio.seeds > 1 else "one seed, no interval"
            )
            found.append(
                f"{label}: {'at least ' if ratio.bound else ''}{ratio.mean:.3g} times fewer weights than random {what} "
                f"({interval}; {ratio.seeds} seeds)."
            )
    return found


def write_report(content: Mapping[str, Any], folder: Path, utility_loss: float) -> str:
    """Write figures (PNG, SVG) and `report.md` into `folder`; returns the report's text."""
    parts = []
    for group in groups(content):
        name = f"patch_size_{group.task}_{group.objective}"
        drawn = figure(group, utility_loss)
        canvas = FigureCanvasAgg(drawn)
        for ending in ("png", "svg"):
            canvas.figure.savefig(folder / f"{name}.{ending}", metadata={"Date": None} if ending == "svg" else None)
        parts.append(
            f"## {group.model}, {group.task}, {group.objective}\n\n![Forgetting against patch size]({name}.png)\n\n"
            + "\n".join(f"- {sentence}" for sentence in sentences(group, utility_loss))
            + f"\n\n{table(group, utility_loss)}\n"
        )
    text = (
        "# The smallest patch that forgets\n\n"
        f"*reached*: runs whose forget answers fell to the goal, with retained and unseen answers within {utility_loss:g} "
        "of the reference model. *robust*: runs that reached the forget goal and are no worse than all weights: retained and "
        f"unseen answers within {utility_loss:g}, and within {CLOSE:g} after relearning and in 4 bits. A number in brackets counts the runs it is of.\n\n"
        + "\n".join(parts)
    )
    write_atomically(folder / "report.md", text.encode())
    return text
