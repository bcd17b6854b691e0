"""The figure of a recipe's run, and the run's part of a page: how much each model forgot, and what it kept.

python recipes/figure.py outputs/detox_po/results.json detox.svg
python recipes/figure.py outputs/detox_po/results.json docs/applications/detox.svg --page docs/applications/detox.md

The page has the run between two comments, `<!-- run: detox_po -->` and `<!-- end -->`, by the name of the run's folder.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tasks import list_tasks, task_class

from wagle_trainer.evaluation import get_suite, load_results, results_table
from wagle_trainer.reporting.intervals import example_interval
from wagle_trainer.reporting.plots import svg
from wagle_trainer.utils.atomic_files import write_atomically

FORGOTTEN, KEPT, REFERENCE = "#D55E00", "#0072B2", "#777777"
WORDS = {"lower": "less", "higher": "more"}


def metrics_of_run(results: Mapping[str, Any]) -> tuple[str, str, Mapping[str, tuple[str, str]], Any]:
    """The number of what is forgotten, that of what is kept, the table's columns, and the suite of a run.

    Raises:
        ValueError: the results are not of a recipe.
    """
    try:
        name = next(iter(results.values()))["settings"]["suite"]
    except (AttributeError, KeyError, StopIteration, TypeError) as error:
        raise ValueError(
            "These are not the results of a recipe: results.json in its output folder has them."
        ) from error
    suite = get_suite(name)
    chosen = [task_class(task).utility_metric for task in list_tasks() if task_class(task).suite == name]
    kept = next((metric for metric in chosen if metric is not None), next(iter(suite.utility_metrics)))
    return next(iter(suite.forget_metrics)), kept, suite.headline, suite


def draw(results: Mapping[str, Any]) -> tuple[Figure, str]:
    """The figure, and what it shows in words.

    Args:
        results: label -> results, as a recipe writes them.
    """
    forget, kept, headline, suite = metrics_of_run(results)
    labels = list(results)
    figure = Figure(figsize=(7.2, 0.9 + 0.36 * len(labels)), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    parts = []
    for axes, metric, colour, better, word in (
        (left, forget, FORGOTTEN, suite.forget_metrics[forget], "forgotten"),
        (right, kept, KEPT, suite.utility_metrics[kept], "kept"),
    ):
        values = _dots(axes, results, metric, colour)
        name = " ".join(headline.get(metric, (metric,)))
        axes.set_xlabel(f"{name} ({better}: more {word})", fontsize=9)
        parts.append(
            f"{name}: " + "; ".join(f"{label} = {value:.3g}" for label, value in zip(labels, values, strict=True))
        )
    left.set_yticks(range(len(labels)), labels, fontsize=9)
    left.set_ylim(len(labels) - 0.5, -0.5)
    return figure, f"{'. '.join(parts)}. Lines are 95 % intervals over the examples."


def _dots(axes: Axes, results: Mapping[str, Any], metric: str, colour: str) -> list[float]:
    values = []
    for place, (label, found) in enumerate(results.items()):
        interval = example_interval(found, metric)
        shade = colour if label.startswith("after") else REFERENCE
        if interval.low is not None and interval.high is not None:
            axes.plot([interval.low, interval.high], [place, place], color=shade, linewidth=2)
        axes.plot(interval.mean, place, "o", color=shade, markersize=6)
        values.append(interval.mean)
    axes.margins(x=0.08)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return values


def save(figure: Figure, path: Path) -> None:
    """Write an SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, svg(figure))


def update_page(page: Path, run: str, table: str, image: str) -> None:
    """Put the run's table and figure between its comments.

    Raises:
        ValueError: the page has no place for it.
    """
    text = page.read_text(encoding="utf-8")
    place = re.compile(rf"(<!-- run: {re.escape(run)} -->\n).*?(<!-- end -->)", re.S)
    if not place.search(text):
        raise ValueError(f"{page} has no place for the run {run!r}: put <!-- run: {run} --> and <!-- end --> into it.")
    page.write_text(
        place.sub(lambda found: f"{found[1]}\n```\n{table}\n```\n\n{image}\n\n{found[2]}", text), encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="results.json of a recipe")
    parser.add_argument("figure", type=Path, help="the SVG to write")
    parser.add_argument("--page", type=Path, help="a Markdown page that gets the table and the figure, too")
    args = parser.parse_args()
    results = load_results(args.results)
    figure, words = draw(results)
    save(figure, args.figure)
    if args.page is not None:
        table = results_table(results, metrics_of_run(results)[2])
        image = f"![{words}]({args.figure.resolve().relative_to(args.page.resolve().parent)})"
        update_page(args.page, args.results.resolve().parent.name, table, image)
    print(f"{args.figure}: {words}")


if __name__ == "__main__":
    main()
