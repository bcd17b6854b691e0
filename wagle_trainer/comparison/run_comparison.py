"""`run_comparison`: all runs of a comparison, then its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wagle_trainer.comparison.comparison_report import picks, read_references, report
from wagle_trainer.comparison.learning_rate_rule import forget_goal
from wagle_trainer.comparison.runs import Runs
from wagle_trainer.comparison.workers import Workers, prepare_process

Work = tuple[Callable[..., None], Sequence[tuple[Any, ...]], str]


def check_can_compare(args: Any, model_args: Any) -> None:
    """Raise ValueError for options that a comparison of whole models, side by side, cannot have."""
    if args.world_size > 1:
        raise ValueError(
            "A comparison runs whole models side by side: start it with one process, and give --processes."
        )
    if model_args.use_peft:
        raise ValueError("A comparison compares masks on the model's own weights: leave out --use_peft.")


def run_comparison(runs: Runs, *, first: Work | None = None, threads: int | None = None) -> str:
    """Make all runs that are missing, and write the report and its tables.

    Args:
        runs: of the comparison.
        first: work that comes before all runs: a function, the arguments of its calls, and a title.
        threads: of each process; None for torch's choice.

    Returns:
        The table and what can be said of it, as text.

    Raises:
        ValueError: the folder holds runs with other settings, or the forget goal is unknown.
    """
    runs.check_settings()
    compare = runs.compare
    processes = compare.processes or (2 if runs.args.device.type == "cpu" else 1)
    prepare_process(threads)
    workers = Workers(processes)
    if first is not None and first[1]:
        workers.map(*first)
    workers.map(runs.measure_references, [(seed,) for seed in runs.reference_seeds], "References")
    goal = forget_goal(read_references(runs), compare)  # before the long part, in case there is none
    workers.map(runs.run, [(variant,) for variant in runs.variants if runs.missing(variant)], "Variants")
    picked = picks(runs, goal)
    if compare.attacks:
        if runs.retrained(compare.seeds[0]) is not None:
            workers.map(runs.attack_retrained, [(seed,) for seed in runs.reference_seeds], "Attacks on the retrained")
        reached = [(v, p.learning_rate) for v in runs.variants if (p := picked.get(v.label)) and p.reached]
        workers.map(runs.attack_variant, reached, "Attacks")
    return report(runs, picked, goal)
