"""What the runs of recipes/compare.py say together: which learning rate counts, the tests, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, NamedTuple

from compare_runs import NO_MASK, CompareArguments, Runs
from recipe import RETRAINED

from wagle_trainer.evaluation import load_results, results_table
from wagle_trainer.evaluation.attacks import read_attack
from wagle_trainer.reporting import write_report
from wagle_trainer.reporting.statistics import mean

Results = Sequence[Mapping[str, Any]]  # one for each seed


class Pick(NamedTuple):
    """The learning rate that counts for a variant, whether it reaches the forget goal, and its results."""

    learning_rate: float
    reached: bool
    results: Results


def pick(by_rate: Mapping[float, Results], goal: float, compare: CompareArguments) -> Pick | None:
    """Of the learning rates whose mean over seeds reaches the forget goal, the one with the best mean utility; if none
    does, the one that forgets most; the lower of two that are equal. Rates with a failed seed do not count: None if no
    rate is left."""
    sign = 1 if compare.suite.forget_metrics[compare.forget_metric] == "higher" else -1
    found = []
    for rate, results in by_rate.items():
        if not any("failed" in result for result in results):
            forgotten = sign * mean([result[compare.forget_metric] for result in results])
            utility = mean([result[compare.utility_metric] for result in results])
            reached = forgotten >= sign * goal
            found.append(((reached, utility if reached else forgotten, -rate), Pick(rate, reached, results)))
    return max(found, key=lambda entry: entry[0])[1] if found else None


def forget_goal(references: Mapping[str, Results], compare: CompareArguments) -> float:
    """The value of the forget metric from which a variant counts as having forgotten.

    Raises:
        ValueError: there is no number to derive it from.
    """
    if compare.forget_goal is not None:
        return compare.forget_goal
    metric, ends = compare.forget_metric, [references.get("before", ()), references.get(RETRAINED, ())]
    if not all(end and metric in end[0] for end in ends):
        raise ValueError(
            f"The forget goal is a share of the distance of {metric} from the reference to a retrained model, but not "
            "both have that number: give --forget_goal, or a --retrained_model."
        )
    before, retrained = (mean([result[metric] for result in end]) for end in ends)
    return before + compare.forget_share * (retrained - before)


def read_references(runs: Runs) -> dict[str, Results]:
    """The measurements of the reference and the retrained models: one for each seed, or a single one for all."""
    return {
        name: [load_results(runs.path(seed, name)) for seed in runs.reference_seeds]
        for name in ("before", RETRAINED)
        if runs.path(runs.reference_seeds[0], name).exists()
    }


def picks(runs: Runs, goal: float) -> dict[str, Pick]:
    """What counts of each variant; those without a learning rate that gave finite numbers are not in it."""
    picked = {}
    for label in dict.fromkeys(variant.label for variant in runs.variants):
        by_rate = {
            rate: [load_results(runs.path(seed, label, rate)) for seed in runs.compare.seeds]
            for rate in runs.learning_rates
        }
        if (found := pick(by_rate, goal, runs.compare)) is not None:
            picked[label] = found
    return picked


def report(runs: Runs, picked: Mapping[str, Pick], goal: float) -> None:
    """Write the report into the folder of the runs, and print its table and sentences."""
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
            (label, f"random {v.density:g}") for label, v in masked.items() if v.score != "random"
        ],
        NO_MASK: [(label, NO_MASK) for label in masked],
    }
    smallest = min(compare.densities)
    drawn = [*(label for label, variant in masked.items() if variant.density == smallest), NO_MASK, RETRAINED]
    path = write_report(
        results,
        runs.folder,
        title=f"{runs.args.loss_type} with and without masks",
        mask={label: runs.folder / "masks" / label for label in drawn if label in masked},
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
    print(
        f"\n{results_table(means, headline)}\n\n"
        + "\n".join([*page["summary"], *page["notes"]])
        + f"\n\nThe report: {path}"
    )


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
        if runs.small
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
