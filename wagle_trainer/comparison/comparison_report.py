"""What the runs of a comparison say together: the learning rates that count, the tests, the page, the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from wagle_trainer.comparison.learning_rate_rule import RETRAINED, Pick, Results, pick
from wagle_trainer.comparison.runs import NO_MASK, Runs
from wagle_trainer.evaluation import load_results, results_table
from wagle_trainer.evaluation.attacks import read_attack
from wagle_trainer.reporting import write_report
from wagle_trainer.reporting.result_tables import write_tables
from wagle_trainer.reporting.statistics import mean


def read_references(runs: Runs) -> dict[str, Results]:
    """The measurements of the reference and the retrained models: one for each seed, or a single one for all.

    Args:
        runs: of the comparison.
    """
    return {
        name: [load_results(runs.path(seed, name)) for seed in runs.reference_seeds]
        for name in ("before", RETRAINED)
        if runs.path(runs.reference_seeds[0], name).exists()
    }


def picks(runs: Runs, goal: float) -> dict[str, Pick]:
    """What counts of each variant; those without a learning rate that gave finite numbers are not in it.

    Args:
        runs: of the comparison.
        goal: value of the forget metric from which on enough is forgotten.
    """
    picked = {}
    for label in dict.fromkeys(variant.label for variant in runs.variants):
        by_rate = {
            rate: [load_results(runs.path(seed, label, rate)) for seed in runs.compare.seeds]
            for rate in runs.learning_rates
        }
        if (found := pick(by_rate, goal, runs.compare)) is not None:
            picked[label] = found
    return picked


def report(runs: Runs, picked: Mapping[str, Pick], goal: float) -> str:
    """Write the report and its tables into the folder of the runs, and return table and sentences as text.

    Args:
        runs: of the comparison.
        picked: what counts of each variant.
        goal: value of the forget metric from which on enough is forgotten.
    """
    compare, seeds, references = runs.compare, runs.compare.seeds, read_references(runs)
    by_label = {"before": references["before"], **{label: found.results for label, found in picked.items()}}
    by_label |= {RETRAINED: references[RETRAINED]} if RETRAINED in references else {}
    attacked = {label: found for label in by_label if (found := _read_attacks(runs, picked, label))}
    recovered = {f"{name}_recovered": (name.replace("_", " "), "recovered") for name in compare.attacks}
    headline = {**runs.task.headline, **recovered}
    results: dict[str, Any] = {}
    for label, measured in by_label.items():
        seen = [
            {**run} | {f"{name}_recovered": attack["recovered"] for name, attack in attacks.items()}
            for run, attacks in zip(measured, attacked.get(label, [{}] * len(measured)), strict=True)
        ]
        results[label] = seen if len(seen) == len(seeds) else seen[0]

    masked = {v.label: v for v in runs.variants if v.score is not None and v.label in picked}
    pairs = {
        "a random mask of the same density": [
            (label, v.with_mask("random").label) for label, v in masked.items() if v.score != "random"
        ],
        NO_MASK: [(label, v.with_mask(None).label) for label, v in masked.items()],
    }
    first, smallest = runs.variants[0], min(compare.densities)
    drawn = [label for label, v in masked.items() if v.density == smallest and v.objective == first.objective]
    drawn += [first.with_mask(None).label, RETRAINED]
    path = write_report(
        results,
        runs.folder,
        title=f"{', '.join(compare.objectives) or runs.args.loss_type} with and without masks",
        mask={label: folder for label in drawn if (folder := runs.folder / "masks" / label).is_dir()},
        attacks={f"{label} (seed {seeds[0]})": attacked[label][0] for label in drawn if label in attacked},
        config=runs.args.to_dict() | asdict(runs.task.data) | asdict(compare),
        forget_goal=goal,
        suite=SimpleNamespace(
            headline=headline,
            forget_metrics={
                **_first(compare.forget_metric, compare.suite.forget_metrics),
                **dict.fromkeys(recovered, "lower"),
            },
            utility_metrics=_first(compare.utility_metric, compare.suite.utility_metrics),
        ),
        comparisons={family: [p for p in some if set(p) <= set(picked)] for family, some in pairs.items()},
        notes=_notes(runs, picked, goal),
    )
    page = load_results(path.with_name("report.json"))
    means = {label: {name: i["mean"] for name, i in found.items()} for label, found in page["table"].items()}
    write_tables(page, runs.folder, compare.formats, _more_columns(picked))
    return (
        f"\n{results_table(means, headline)}\n\n"
        + "\n".join([*page["summary"], *page["notes"]])
        + f"\n\nThe report: {path}"
    )


def _more_columns(picked: Mapping[str, Pick]) -> dict[str, dict[str, Any]]:
    """Columns of the tables that are no metrics of the suite: label -> value."""
    seconds = {
        label: [run["settings"]["seconds"] for run in found.results if "seconds" in run.get("settings", {})]
        for label, found in picked.items()
    }
    return {
        "learning rate": {label: found.learning_rate for label, found in picked.items()},
        "goal reached": {label: "yes" if found.reached else "no" for label, found in picked.items()},
        "seconds of training": {label: mean(some) for label, some in seconds.items() if some},
    }


def _read_attacks(runs: Runs, picked: Mapping[str, Pick], label: str) -> list[dict[str, Any]]:
    """What each attack recovered, for each seed; nothing where the variant was not attacked."""
    rate = picked[label].learning_rate if label in picked else None
    seeds = runs.compare.seeds if label in picked else runs.reference_seeds
    found = {}
    for attack in runs.compare.attacks:
        paths = [runs.attack_path(attack, seed, label, rate) for seed in seeds]
        results = [read_attack(load_results(path)) for path in paths if path.exists()]
        if len(results) == len(seeds) and all("attack" in result for result in results):
            found[attack] = results
    return [{attack: results[i] for attack, results in found.items()} for i in range(len(seeds))] if found else []


def _notes(runs: Runs, picked: Mapping[str, Pick], goal: float) -> list[str]:
    compare = runs.compare
    notes = [
        "A seed is a small Llama that was trained from scratch on the bundled example, and one that never saw the forget "
        "set; it also gives the order of the examples and the random mask."
        if getattr(runs, "small", False)
        else "Each seed has a reference model of its own; it also gives the order of the examples and the random mask."
        if runs.model_for_each_seed
        else "All seeds start from the same model: a seed gives the order of the examples and the random mask, so that "
        "the tests say nothing about other models.",
        f"Learning rate of each variant: of {', '.join(f'{rate:g}' for rate in runs.learning_rates)} the one with the best "
        f"mean {compare.utility_metric} among those whose mean {compare.forget_metric} reaches the forget goal of "
        f"{goal:.3g}; if none does, the one that forgets most. It is picked on the seeds that the tests are made on, in the "
        "same way for every variant. Picked: "
        + "; ".join(f"{label}: {found.learning_rate:g}" for label, found in picked.items())
        + ".",
    ]
    missed = [label for label, found in picked.items() if not found.reached]
    if missed:
        notes.append(f"No learning rate reached the forget goal: {', '.join(missed)}.")
    failed = dict.fromkeys(variant.label for variant in runs.variants if variant.label not in picked)
    if failed:
        notes.append(f"Left out, since no learning rate gave finite numbers on every seed: {', '.join(failed)}.")
    if compare.attacks:
        notes.append(
            f"Attacked ({', '.join(compare.attacks)}): every variant that reached the goal, trained once more for it, and the "
            f"retrained model; relearning with a learning rate of {compare.relearning_rate:g}."
        )
    return notes


def _first(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {metric: metrics[metric], **metrics}
