"""The answer of the study of patch sizes: a figure, tables, and sentences, as Markdown and as a page."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from patch_size_comparisons import differences_table, ratio_to_random
from patch_size_groups import CLOSE, Group, Row, groups, label_of

from wagle_trainer.reporting.patch_size_plot import Panel, PatchPoint, patch_size_plot
from wagle_trainer.reporting.plots import png, svg
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.table_formats import markdown_table

# The lines of the figure keep their colours whatever else is drawn.
ORDER = (
    *("snip", "gradient", "wagle, gamma 1e-06", "curvature", "answer_rows", "magnitude", "wagle, gamma balanced"),
    *("wagle, gamma 0.001", "wagle, gamma auto", "grad_ratio", "curvature-body"),
)
FORGOT_NOTHING = 0.9  # of what the reference model knows
GOALS = {
    False: "to forget without losing utility",
    True: "to forget, keep utility, and withstand relearning and 4 bits as well as all weights",
}


def figure(group: Group) -> Figure:
    """Forgetting and relearning against the patch size: a line for each score, bands from lowest to highest seed."""
    goal = [row["goal"] for row in group.rows if "goal" in row]
    dense = [row for row in group.chosen("all weights", 1.0).values() if "failed" not in row]
    relearned = _known(group, dense, "relearned")
    forgotten = _average(goal)
    panels = (
        Panel(
            "after unlearning",
            _curves(group, "forget"),
            _levels(group, "forget"),
            forgotten,
            "" if forgotten is None else f"goal: {forgotten:.2g}",
        ),
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
        f"How much is still known after a small patch: {group.model}, {group.task}, {_objective(group)}, "
        f"{seeds} seed{'s' * (seeds != 1)}",
        f"lines: means; bands and bars: lowest to highest seed; hollow: retained or unseen answers lost more than {group.utility_loss:g}",
        weights,
        ORDER,
    )


def _objective(group: Group) -> str:
    """The objective with its settings, where the rows have them."""
    row = next((row for row in group.rows if "beta" in row), {})
    settings = [f"beta {row['beta']:g}"] if row and group.objective == "npo" else []
    if row.get("retain_weight", 1.0) != 1.0:
        settings.append(f"retain weight {row['retain_weight']:g}")
    return group.objective.upper().replace("_", " ") + (f" ({', '.join(settings)})" if settings else "")


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
                if values := _known(group, rows, metric):
                    point = PatchPoint(density, values, max(lost) <= group.utility_loss)
                    curves.setdefault(label, []).append(point)
    return curves


def _known(group: Group, rows: Sequence[Row], metric: str) -> list[float]:
    """What is known after runs. One that forgot nothing may not have been attacked: relearning finds it as the reference model."""
    values = []
    for row in rows:
        reference = group.references[row["seed"]]
        if metric in row:
            values.append(row[metric])
        elif row["forget"] >= FORGOT_NOTHING * reference["forget"]:
            values.append(max(row["forget"], reference["relearned"]))
    return values


def _levels(group: Group, metric: str) -> dict[str, float]:
    references = group.references.values()
    dense = [row for row in group.chosen("all weights", 1.0).values() if "failed" not in row]
    found = {
        "reference model": _average([row[metric] for row in references if metric in row]),
        "never knew": _average([r[f"retrained_{metric}"] for r in references if f"retrained_{metric}" in r]),
        "all weights": _average(_known(group, dense, metric)),
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
    for robust, what in GOALS.items():
        dense = group.chosen("all weights", 1.0)
        reached = sum(group.smallest("all weights", seed, robust) is not None for seed in dense)
        if dense:
            found.append(f"All weights reach the goal ({what}) on {reached} of {len(dense)} seeds.")
    for label in group.labels():
        if label == "random":
            continue
        for robust, what in GOALS.items():
            ratio = ratio_to_random(group, label, robust)
            if ratio is None:
                missed = [seed for seed in group.seeds() if group.tried(label, seed)]
                reaching = [seed for seed in missed if group.smallest(label, seed, robust) is not None]
                found.append(f"{label} reaches the goal ({what}) on {len(reaching)} of {len(missed)} seeds: no ratio.")
            elif not ratio.tells:
                found.append(f"{label}, {what}: the densities tried do not tell it from random: no ratio.")
            else:
                interval = (
                    "one seed, no interval" if ratio.seeds == 1 else f"ratio: {ratio.interval()}; {ratio.seeds} seeds"
                )
                found.append(f"{label} needs {ratio.in_words()} random {what} ({interval}).")
    edges = [
        f"{label} at {density:g}"
        for label in ["all weights", *group.labels()]
        for density in group.densities(label)
        if group.at_edge(label, density)
    ]
    if edges:
        found.append(f"The best learning rate is the lowest or the highest that was tried: {', '.join(edges)}.")
    return found


def size_table(group: Group) -> list[list[str]]:
    """Smallest density of each score by seed, and the ratio to random."""
    seeds = group.seeds()
    lines = [["score", "goal", *(f"seed {seed}" for seed in seeds), "random needs times more"]]
    for label in ["all weights", *group.labels()]:
        for robust, name in ((False, "reached"), (True, "robust")):
            found = []
            for seed in seeds:
                tried, own = group.tried(label, seed), group.smallest(label, seed, robust)
                found.append("" if not tried else f"> {tried[-1]:g}" if own is None else f"{own:g}")
            compared = label not in ("all weights", "random")
            ratio = ratio_to_random(group, label, robust) if compared else None
            lines.append([label, name, *found, str(ratio or "-") if compared else ""])
    return lines


def legend(utility_loss: float) -> str:
    """What the columns mean."""
    return (
        f"*reached*: runs whose forget answers fell to the goal, with retained and unseen answers within {utility_loss:g} "
        "of the reference model. *robust*: runs that reached the forget goal and are no worse than all weights: retained and "
        f"unseen answers within {utility_loss:g}, and within {CLOSE:g} after relearning and in 4 bits. *repeated*: forget answers "
        "in a text that repeats them, so that a model that has lost the words themselves shows. A number in brackets counts the runs it is of. *random needs times more*: geometric mean over the seeds of the bounds that the densities tried leave. Intervals are "
        "Student's t over the seeds; where all agree, they have no width. p-values are of paired t-tests, not corrected for their number."
    )


def write_report(content: Mapping[str, Any], folder: Path, utility_loss: float) -> str:
    """Write figures (PNG, SVG), `report.md` and `report.html` into `folder`; returns the text of `report.md`."""
    parts, sections = [], []
    drawn_before: set[str] = set()
    for group in groups(content, utility_loss):
        name = f"patch_size_{group.task}_{group.objective}"
        if name in drawn_before:  # of another model
            name = f"{name}_{re.sub(r'[^A-Za-z0-9.-]+', '-', group.model)}"
        drawn_before.add(name)
        drawn = figure(group)
        picture = png(drawn)
        write_atomically(folder / f"{name}.png", picture)
        write_atomically(folder / f"{name}.svg", svg(drawn))
        title, said = f"{group.model}, {group.task}, {group.objective}", sentences(group)
        tables = tuple(filter(None, (size_table(group), table(group), rates_table(group), differences_table(group))))
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
