"""The answer of the study of patch sizes: a figure, tables, and how many times fewer weights a score needs than random.

A score's smallest patch on a seed is the smallest density tried at which it reaches the goal. Its ratio to random is
censored where random reaches the goal at no density (it needs more weights than its largest patch had) and where a score
reaches it at the smallest one tried (it may need fewer).
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wagle_trainer.reporting.patch_size_plot import Panel, PatchPoint, patch_size_plot
from wagle_trainer.reporting.plots import png, svg
from wagle_trainer.reporting.statistics import t_interval
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.table_formats import markdown_table

Row = Mapping[str, Any]
CLOSE = 0.02  # of probability: what counts as no worse than all weights
GOALS = {
    False: "to forget without losing utility",
    True: "to forget, keep utility, and withstand relearning and 4 bits as well as all weights",
}


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
    utility_loss: float = 0.05

    def labels(self) -> list[str]:
        """Scores, random first."""
        found = dict.fromkeys(label_of(row) for row in self.rows if row["score"] != "none")
        return sorted(found, key=lambda label: label != "random")

    def densities(self, label: str) -> list[float]:
        """Those that a score was run with."""
        return sorted({row["density"] for row in self.rows if label_of(row) == label})

    def chosen(self, label: str, density: float) -> dict[int, Row]:
        """Seed -> row, at the learning rate that most seeds were run with; of several, the one that the first seed chooses."""
        same = [row for row in self.rows if label_of(row) == label and row["density"] == density]
        rates: dict[float, dict[int, Row]] = {}
        for row in same:
            rates.setdefault(row["learning_rate"], {})[row["seed"]] = row
        if not rates:
            return {}
        most = max(map(len, rates.values()))
        candidates = {rate: rows for rate, rows in rates.items() if len(rows) == most}
        return candidates[min(candidates, key=lambda rate: self._shortfall(candidates[rate]))]

    def rates(self, label: str, density: float) -> list[float]:
        """Learning rates that were tried."""
        return sorted({r["learning_rate"] for r in self.rows if label_of(r) == label and r["density"] == density})

    def at_edge(self, label: str, density: float) -> bool:
        """Whether the chosen learning rate is the lowest or the highest that was tried."""
        rates = self.rates(label, density)
        [rate] = {row["learning_rate"] for row in self.chosen(label, density).values()}
        return rate in (rates[0], rates[-1])

    def reached(self, row: Row) -> bool:
        """Whether a run forgot, and lost no utility."""
        reference = self.references[row["seed"]]
        return (
            "failed" not in row
            and row["forget"] <= row["goal"]
            and all(row[name] >= reference[name] - self.utility_loss for name in ("retain", "held_out"))
        )

    def robust(self, row: Row) -> bool:
        """Whether a run forgot and is no worse than all weights: in what it keeps, after relearning and in 4 bits."""
        dense = self.chosen("all weights", 1.0).get(row["seed"])
        if "failed" in row or row["forget"] > row["goal"] or "relearned" not in row:
            return False
        if dense is None or "relearned" not in dense:
            return False
        reference = self.references[row["seed"]]
        return (
            all(row[n] >= min(reference[n], dense[n]) - self.utility_loss for n in ("retain", "held_out"))
            and row["relearned"] <= dense["relearned"] + CLOSE
            and row["quantized"]["4"]["forget"] <= dense["quantized"]["4"]["forget"] + CLOSE
        )

    def smallest(self, label: str, seed: int, robust: bool) -> float | None:
        """The smallest density at which a score reaches the goal on a seed; None if at none."""
        holds = self.robust if robust else self.reached
        for density in self.densities(label):
            row = self.chosen(label, density).get(seed)
            if row is not None and holds(row):
                return density
        return None

    def tried(self, label: str, seed: int) -> list[float]:
        """Densities that a score was run with on a seed, at the learning rate that counts."""
        return [density for density in self.densities(label) if seed in self.chosen(label, density)]

    def seeds(self) -> list[int]:
        """Those that any row has."""
        return sorted({row["seed"] for row in self.rows} & set(self.references))

    def _shortfall(self, rows: Mapping[int, Row]) -> float:
        """On the first seed, which chooses the learning rates."""
        seed = min(rows)
        masked = rows[seed]["score"] != "none"
        dense = self.chosen("all weights", 1.0) if masked else {}
        return shortfall(rows[seed], self.references[seed], self.utility_loss, dense.get(seed))


def shortfall(row: Row, reference: Row, utility_loss: float, dense: Row | None = None) -> float:
    """How far a run is from the goal, as shares of what the reference model knows; infinite where it failed.

    Args:
        row, reference: of the run and of its reference model.
        utility_loss: what retained and unseen answers may lose.
        dense: of the run with all weights, where there is one. What it lost, a mask may lose, too.
    """
    if "failed" in row:
        return math.inf
    left, lost = row["forget"] / reference["forget"], 0.0
    missing = max(0.0, left - row["goal"] / reference["forget"])
    for name in ("retain", "held_out"):
        floor = reference[name]
        if dense is not None and "failed" not in dense:
            floor = min(floor, dense[name])
        lost += max(0.0, 1 - row[name] / reference[name])
        missing += max(0.0, floor - utility_loss - row[name]) / reference[name]
    return missing + 0.1 * (left + lost)


def groups(content: Mapping[str, Any], utility_loss: float = 0.05) -> list[Group]:
    """The rows of results.json by model, task and objective."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in content["rows"]:
        found.setdefault((row["model"], row["task"], row["objective"]), []).append(row)
    return [
        Group(
            *key,
            tuple(rows),
            {r["seed"]: r for r in content["references"] if (r["model"], r["task"]) == key[:2]},
            utility_loss,
        )
        for key, rows in found.items()
    ]


@dataclass(frozen=True)
class Ratio:
    """How many times more weights random needs than a score, over the seeds that both were run with.

    Attributes:
        mean: geometric mean over seeds.
        low, high: 95 % interval: Student's t over the seeds' logarithms; None with one seed. Of a lower bound only `low`
            means something, of an upper bound only `high`.
        seeds: how many.
        at_least: random missed the goal at every density on some seed, where its largest one stands for it, or the score
            reached it at its smallest one: the ratio is a lower bound.
        at_most: random reached the goal at its smallest density on some seed: the ratio is an upper bound. With
            `at_least`, too, the densities tried do not tell.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    at_least: bool
    at_most: bool

    def __str__(self) -> str:
        if self.at_least and self.at_most:
            return f"unknown (n = {self.seeds})"
        sign = ">= " if self.at_least else "<= " * self.at_most
        return f"{sign}{self.mean:.3g} ({self.interval()}; n = {self.seeds})"

    def interval(self) -> str:
        """The interval in words; of a bound the end that is one, too."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.at_least:
            return f"95 % from {self.low:.3g}"
        return f"95 % {'' if self.at_most else f'{self.low:.3g} '}to {self.high:.3g}"


def ratio_to_random(group: Group, label: str, robust: bool) -> Ratio | None:
    """Of the smallest densities, seed by seed; None where the score misses the goal on some seed.

    Args:
        robust: also after relearning and in 4 bits, compared with all weights.
    """
    logs, at_least, at_most = [], False, False
    for seed in group.seeds():
        own_tried, random_tried = group.tried(label, seed), group.tried("random", seed)
        if not own_tried or not random_tried:
            continue
        own, chance = group.smallest(label, seed, robust), group.smallest("random", seed, robust)
        if own is None:
            return None
        at_least |= chance is None or own == own_tried[0]
        at_most |= chance == random_tried[0]
        logs.append(math.log10((random_tried[-1] if chance is None else chance) / own))
    if not logs:
        return None
    found = t_interval(logs)
    low, high = (None if end is None else 10**end for end in (found.low, found.high))
    return Ratio(10**found.mean, low, high, len(logs), at_least, at_most)


def figure(group: Group) -> Figure:
    """Forgetting and relearning against the patch size: a line for each score, bands from lowest to highest seed."""
    goal = [row["goal"] for row in group.rows if "goal" in row]
    dense = [row for row in group.chosen("all weights", 1.0).values() if "failed" not in row]
    relearned = [_level(group, row, "relearned") for row in dense]
    panels = (
        Panel("after unlearning", _curves(group, "forget"), _levels(group, "forget"), _average(goal), "goal"),
        Panel(
            "after relearning half of the facts" if group.task == "facts" else "after relearning one half",
            _curves(group, "relearned"),
            _levels(group, "relearned"),
            _average(relearned, CLOSE),
            "as robust as all weights",
        ),
    )
    weights = next(
        (row["num_selected"] for row in group.rows if row["score"] == "none" and "num_selected" in row), None
    )
    seeds = len(group.seeds())
    return patch_size_plot(
        panels,
        f"How much is still known after a small patch: {group.model}, {group.task}, {group.objective.upper()}, "
        f"{seeds} seed{'s' * (seeds != 1)}",
        f"hollow: retained or unseen answers lost more than {group.utility_loss:g}",
        weights,
    )


def _average(values: Sequence[float], more: float = 0.0) -> float | None:
    return sum(values) / len(values) + more if values else None


def _curves(group: Group, metric: str) -> dict[str, list[PatchPoint]]:
    curves: dict[str, list[PatchPoint]] = {}
    for label in group.labels():
        for density in group.densities(label):
            rows = [row for row in group.chosen(label, density).values() if "failed" not in row]
            if rows:
                lost = [
                    sum(group.references[r["seed"]][name] - r[name] for r in rows) / len(rows)
                    for name in ("retain", "held_out")
                ]
                values = [_level(group, row, metric) for row in rows]
                curves.setdefault(label, []).append(PatchPoint(density, values, max(lost) <= group.utility_loss))
    return curves


def _level(group: Group, row: Row, metric: str) -> float:
    """What is known; a run that forgot nothing was not attacked: there it is what the reference model knows."""
    if metric in row:
        return row[metric]
    return max(row["forget"], group.references[row["seed"]]["relearned"])


def _levels(group: Group, metric: str) -> dict[str, float]:
    references = group.references.values()
    dense = [row for row in group.chosen("all weights", 1.0).values() if "failed" not in row]
    found = {
        "reference model": _average([row[metric] for row in references if metric in row]),
        "never knew": _average([r[f"retrained_{metric}"] for r in references if f"retrained_{metric}" in r]),
        "all weights": _average([_level(group, row, metric) for row in dense]),
    }
    return {label: value for label, value in found.items() if value is not None}


def table(group: Group) -> list[list[str]]:
    """One row for each score and density at its chosen rate, means over seeds."""
    reference = list(group.references.values())
    shown = {
        **{"forget": "forget", "forget_paraphrased": "paraphrased", "forget_repeated": "repeated"},
        **{"retain": "retain", "held_out": "unseen", "relearned": "relearned"},
    }
    if not any("forget_repeated" in row for row in reference):  # rows from before it was measured
        del shown["forget_repeated"]
    head = [
        *("score", "density", "lr", "rates tried", "seeds", *shown.values()),
        *("8 bits", "4 bits", "reached", "robust", "patch, kB"),
    ]
    lines = [head]
    lines.append(
        [
            *("*reference*", "", "", "", str(len(reference))),
            *(_mean(reference, name) for name in shown),
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
                    *(_mean(good, name) for name in shown),
                    *(_mean([q[bits] for q in attacked], "forget") for bits in ("8", "4")),
                    f"{sum(group.reached(r) for r in rows)}/{len(rows)}",
                    f"{sum(group.robust(r) for r in rows)}/{len(rows)}",
                    f"{good[0]['patch_bytes'] / 1000:,.0f}" if good else "-",
                ]
            )
    return lines


def rates_table(group: Group) -> list[list[str]]:
    """What was forgotten and recovered at each learning rate, where a mask was attacked at several; means over seeds.

    A mask whose rate was chosen for less forgetting recovers more: masks are to be compared at rates that forget alike.
    """
    shown = {
        **{"forget": "forget", "forget_repeated": "repeated", "retain": "retain", "held_out": "unseen"},
        "relearned": "relearned",
    }
    if not any("forget_repeated" in row for row in group.rows):
        del shown["forget_repeated"]
    lines = [["score", "density", "lr", "seeds", *shown.values(), "4 bits"]]
    for label in ["all weights", *group.labels()]:
        for density in group.densities(label):
            rates: dict[float, list[Row]] = {}
            for row in group.rows:
                if (label_of(row), row["density"]) == (label, density) and "relearned" in row:
                    rates.setdefault(row["learning_rate"], []).append(row)
            several = {rate: rows for rate, rows in sorted(rates.items()) if len(rows) > 1}
            if len(several) > 1:
                lines += [
                    [
                        *(label, f"{density:g}", f"{rate:g}", str(len(rows))),
                        *(_mean(rows, name) for name in shown),
                        _mean([row["quantized"]["4"] for row in rows], "forget"),
                    ]
                    for rate, rows in several.items()
                ]
    return lines if len(lines) > 1 else []


def _mean(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows if name in row]
    if not values:
        return "-"
    note = "" if len(values) == len(rows) else f" ({len(values)})"
    return f"{sum(values) / len(values):.3f}{note}"


def sentences(group: Group) -> list[str]:
    """What the data say of each score compared with random."""
    found = []
    for label in group.labels():
        if label == "random":
            continue
        for robust, what in GOALS.items():
            ratio = ratio_to_random(group, label, robust)
            if ratio is not None and ratio.at_least and ratio.at_most:
                found.append(f"{label}, {what}: random and the score reach it at their smallest densities: no ratio.")
            elif ratio is not None:
                interval = (
                    "one seed, no interval" if ratio.low is None else f"ratio: {ratio.interval()}; {ratio.seeds} seeds"
                )
                found.append(f"{label} needs {_how_many(ratio)} random {what} ({interval}).")
            else:
                missed = [seed for seed in group.seeds() if group.tried(label, seed)]
                reached = [seed for seed in missed if group.smallest(label, seed, robust) is not None]
                found.append(f"{label} reaches the goal ({what}) on {len(reached)} of {len(missed)} seeds: no ratio.")
    edges = [
        f"{label} at {density:g}"
        for label in ["all weights", *group.labels()]
        for density in group.densities(label)
        if group.at_edge(label, density)
    ]
    if edges:
        found.append(f"The best learning rate is the lowest or the highest that was tried: {', '.join(edges)}.")
    return found


def _how_many(ratio: Ratio) -> str:
    """A ratio in words: "at least 15 times fewer weights than"."""
    signs = ("at least ", "at most ") if ratio.mean > 1.005 else ("at most ", "at least ")
    sign = signs[0] if ratio.at_least else signs[1] if ratio.at_most else ""
    if 0.995 < ratio.mean < 1.005:
        return f"{sign}as many weights as"
    times, word = (ratio.mean, "fewer") if ratio.mean > 1 else (1 / ratio.mean, "more")
    return f"{sign}{times:.3g} times {word} weights than"


def size_table(group: Group) -> list[list[str]]:
    """Smallest density of each score by seed, and the ratio to random."""
    seeds = group.seeds()
    lines = [["score", "goal", *(f"seed {seed}" for seed in seeds), "random needs times more"]]
    for label in group.labels():
        for robust, name in ((False, "reached"), (True, "robust")):
            found = []
            for seed in seeds:
                tried, own = group.tried(label, seed), group.smallest(label, seed, robust)
                found.append("" if not tried else f"> {tried[-1]:g}" if own is None else f"{own:g}")
            ratio = None if label == "random" else ratio_to_random(group, label, robust)
            lines.append([label, name, *found, "" if label == "random" else "-" if ratio is None else str(ratio)])
    return lines


def legend(utility_loss: float) -> str:
    """What the columns mean."""
    return (
        f"*reached*: runs whose forget answers fell to the goal, with retained and unseen answers within {utility_loss:g} "
        "of the reference model. *robust*: runs that reached the forget goal and are no worse than all weights: retained and "
        f"unseen answers within {utility_loss:g}, and within {CLOSE:g} after relearning and in 4 bits. *repeated*: forget answers "
        "in a text that repeats them, so that a model that has lost the words themselves shows. A number in brackets counts the runs it is of. The interval is Student's t over the seeds; where all agree, it has no width."
    )


def write_report(content: Mapping[str, Any], folder: Path, utility_loss: float) -> str:
    """Write figures (PNG, SVG), `report.md` and `report.html` into `folder`; returns the text of `report.md`."""
    parts, sections = [], []
    for group in groups(content, utility_loss):
        name = f"patch_size_{group.task}_{group.objective}"
        drawn = figure(group)
        picture = png(drawn)
        write_atomically(folder / f"{name}.png", picture)
        write_atomically(folder / f"{name}.svg", svg(drawn))
        title, said = f"{group.model}, {group.task}, {group.objective}", sentences(group)
        tables = tuple(filter(None, (size_table(group), table(group), rates_table(group))))
        parts.append(
            f"## {title}\n\n![Forgetting against patch size]({name}.png)\n\n"
            + "\n".join(f"- {sentence}" for sentence in said)
            + "\n\n"
            + "\n".join(map(markdown_table, tables))
        )
        sections.append(_section(title, picture, said, tables))
    text = f"# The smallest patch that forgets\n\n{legend(utility_loss)}\n\n" + "\n".join(parts)
    write_atomically(folder / "report.md", text.encode())
    write_atomically(folder / "report.html", _page(legend(utility_loss), sections).encode())
    return text


def _page(intro: str, sections: Sequence[str]) -> str:
    """One file that needs no network."""
    css = (files("wagle_trainer.reporting") / "report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>The smallest patch that forgets</title>\n<style>\n{css}\n"
        "figure img { max-width: 62rem; }\n</style>\n</head>\n<body>\n"
        f"<header><h1>The smallest patch that forgets</h1><p>{html.escape(intro).replace('*', '')}</p></header>\n"
        f"<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, picture: bytes, said: Sequence[str], tables: Sequence[Sequence[Sequence[str]]]) -> str:
    image = base64.b64encode(picture).decode()
    parts = [f"<section>\n<h2>{html.escape(title)}</h2>\n"]
    parts.append(f'<figure><img src="data:image/png;base64,{image}" alt="Forgetting against patch size"></figure>\n')
    parts += [f'<p class="summary">{html.escape(sentence)}</p>\n' for sentence in said]
    for lines in tables:
        head, *body = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
        rows = "\n".join(f"<tr>{row}</tr>" for row in body)
        head = head.replace("<td>", '<th scope="col">').replace("</td>", "</th>")
        parts.append(
            f'<div class="scroll" role="region" tabindex="0" aria-label="Numbers"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table></div>\n"
        )
    return "".join(parts) + "</section>\n"
