"""`wagle compare`: objectives, scores, densities and learning rates over seeds, under one rule, as one table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wagle_trainer.cli.parsing import JSON_HELP
from wagle_trainer.cli.run_config import write_run_config
from wagle_trainer.cli.training import parse_options

DESCRIPTION = """Compare objectives, scores and densities on one model and one data set, over seeds. Each variant runs with every learning
rate; the one that counts has the best utility among those that reach the forget goal. Each run is a file in --output_dir: a
stopped comparison resumes, and seeds, objectives, scores, densities and learning rates can be added later.

Writes report.html, report.json, results.json and config.yaml, and the table as table.csv, table.md and table.tex (--formats). All options
may stand in one YAML file for --config; the training options are those of `wagle unlearn`. In the paths of the model and the
retrained model, {seed} stands for the seed, where each seed has models of its own."""
EXAMPLES = """
  wagle compare --config run.yaml
  wagle compare --model_name_or_path MODEL --dataset_name locuslab/TOFU --retrained_model RETRAINED --objectives npo grad_diff \\
      --scores wagle random --densities 0.05 --learning_rates 1e-5 3e-5 --seeds 0 1 2 --num_train_epochs 5 --output_dir out
  wagle compare --model_name_or_path MODEL --forget_file forget.jsonl --retain_file retain.jsonl --forget_goal 0.1 \\
      --objectives all --scores none --learning_rates 1e-5 3e-5 --output_dir out --formats csv latex"""


SHOWN = {
    "model and data": {
        "model_name_or_path": ("PATH", "the model that is to forget: folder or Hub id"),
        "retrained_model": ("PATH", "a model that never saw the forget set: gives the forget goal"),
        "forget_file": ("FILE", "what to forget, see `wagle unlearn --help`"),
        "retain_file": ("FILE", "what to keep, in the same way"),
        "dataset_name": ("NAME", "in their place a TOFU: locuslab/TOFU, a folder, or the bundled 'fictional'"),
        "evaluation_samples": ("NUMBER", "rows of each set that models are measured on, or 'all'"),
    },
    "what is compared": {
        "objectives": ("NAME ...", "objectives, or 'all'; by default --loss_type alone"),
        "objective_settings": (
            "JSON",
            'training options of single objectives: \'{"rmu": {"loss_kwargs": {"layer": 2}}}\'',
        ),
        "scores": ("SCORE ...", "scores whose masks are compared, or 'none'"),
        "densities": ("SHARE ...", "densities of their masks"),
        "no_dense": ("", "leave out training without a mask"),
        "seeds": ("NUMBER ...", "each variant runs with each"),
        "learning_rates": ("RATE ...", "each variant runs with each; one rule picks the one that counts"),
    },
    "rule": {
        "forget_goal": ("NUMBER", "value of the forget metric that is enough; by default from --forget_share"),
        "forget_share": ("SHARE", "goal as a share of the way from the reference to the retrained model"),
        "forget_metric": ("NAME", "by default the suite's first"),
        "utility_metric": ("NAME", "by default the suite's first"),
        "attacks": ("NAME ...", "attacks on what reaches the goal, such as relearning quantization"),
    },
    "this run": {
        "config": ("FILE", "YAML file of options"),
        "output_dir": ("DIR", "where runs, report and tables go"),
        "formats": ("NAME ...", "tables beside the report: csv, markdown, latex"),
        "processes": ("NUMBER", "runs side by side"),
        "save_generations": ("", "keep questions and answers in the results, for the report's examples"),
        "log_to": ("NAME ...", "trackers that get the table, a run for each row: wandb, trackio, tensorboard"),
        "json": ("", JSON_HELP),
        "help-all": ("", "all options, those of training as well"),
    },
}


@dataclass
class TrackingArguments:
    """Where the table is logged."""

    log_to: list[str] = field(
        default_factory=list,
        metadata={"help": "Trackers that get the table, a run for each row: wandb, trackio, tensorboard."},
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    from wagle_trainer.comparison.arguments import ComparisonArguments
    from wagle_trainer.comparison.run_comparison import check_can_compare
    from wagle_trainer.comparison.suite_task import MeasuredDataArguments, SuiteTask
    from wagle_trainer.utils.trackers import check_trackers

    dataclasses = (ComparisonArguments, MeasuredDataArguments, TrackingArguments)
    parsed = parse_options("compare", DESCRIPTION, EXAMPLES, arguments, dataclasses, shown=SHOWN)
    (compare, data, tracking), training, model = parsed.first, parsed.training, parsed.model
    check_trackers(tracking.log_to)
    check_can_compare(training, model)
    task = SuiteTask(data)
    compare.read_by(task.suite)
    return argparse.Namespace(
        compare=compare,
        task=task,
        training=training,
        model=model,
        log_to=tracking.log_to,
        json=parsed.json,
        given=parsed.given,
        run=_run,
        show=str,
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.comparison.run_comparison import run_comparison
    from wagle_trainer.comparison.runs import Runs
    from wagle_trainer.evaluation import load_results
    from wagle_trainer.utils.trackers import log_to_trackers

    runs = Runs(options.compare, options.task, options.training, options.model)
    write_run_config(runs.folder, options.given)
    text = run_comparison(runs)
    options.show = lambda _: text
    page = load_results(runs.folder / "report.json")
    for label, row in page["table"].items() if options.log_to else ():
        means = {name: interval["mean"] for name, interval in row.items()}
        log_to_trackers(options.log_to, label, means, settings=options.given, folder=runs.folder)
    shown = ("summary", "notes", "columns", "table", "comparisons")
    return {"report": str(runs.folder / "report.html"), **{name: page[name] for name in shown}}
