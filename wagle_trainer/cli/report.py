"""`wagle report`: the page that `write_report` makes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.cli.own_files import add_file_options, read_own_sets, tell
from wagle_trainer.cli.parsing import JSON_HELP, make_parser, read_yaml, show_lines

DESCRIPTION = """Make a page of results (what `wagle evaluate --output` or a recipe wrote), with their intervals, figures and example
answers. Writes report.html, which needs no other file and no network, and the numbers and plots behind it."""
EXAMPLES = """
  wagle report results.json
  wagle report results.json --mask out --history out/history.json --attacks attacks.json --output_dir report
  wagle report out/results.json --verdict out/verdict.json --answers 0
  wagle report results.json --formats csv latex
  wagle report results.json --forget_file forget.jsonl --retain_file retain.jsonl --title "What was forgotten\""""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    parser = make_parser("wagle report", DESCRIPTION, EXAMPLES)
    parser.add_argument("results", help="JSON file of label -> results; 'before' and 'retrained...' are references")
    parser.add_argument("--mask", help="a saved mask: what it selects")
    parser.add_argument("--history", help="history.json of a training run with EvaluationCallback")
    parser.add_argument("--attacks", help="JSON file that `wagle attack --output` wrote: what they recovered")
    parser.add_argument(
        "--config",
        help="YAML file that the run was made with, to be shown beside its results (default: config.yaml beside mask or results)",
    )
    parser.add_argument("--verdict", help="verdict.json of `wagle forget`: what stands at the top")
    parser.add_argument(
        "--answers",
        type=int,
        default=3,
        help="forget questions whose answers are shown, where the results have them; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--suite", help="whose results these are (default: as the results say, or tofu)")
    add_file_options(parser)
    parser.add_argument("--title", default="Unlearning report", help="of the page (default: %(default)s)")
    parser.add_argument("--output_dir", default="report", help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=[],
        choices=["csv", "markdown", "latex"],
        help="also write the table as table.csv, table.md, table.tex",
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=_run, show=show_lines)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.evaluation import load_results, load_results_by_label
    from wagle_trainer.reporting import write_report
    from wagle_trainer.reporting.result_tables import write_tables

    sets = read_own_sets(options)
    tell(sets)
    attacks = None if options.attacks is None else load_results(options.attacks)
    results = load_results_by_label(options.results)
    config = _config(options)
    if sets:
        _check_measured_on(sets, results, options.results)
        config = {**(config or {}), "data": {name: examples.summary() for name, examples in sets.items()}}
    page = write_report(
        results,
        options.output_dir,
        mask=options.mask,
        history=options.history,
        attacks=attacks,
        config=config,
        verdict=None if options.verdict is None else load_results(options.verdict),
        answers=options.answers,
        title=options.title,
        suite=options.suite or _suite_of(results),
    )
    if options.formats:
        write_tables(load_results(page.with_name("report.json")), options.output_dir, options.formats)
    return {"report": str(page)}


def _config(options: argparse.Namespace) -> Mapping[str, Any] | None:
    """The run's options: of the named file, or of the one that a run writes beside its mask or results."""
    if options.config is not None:
        return read_yaml(options.config)
    beside = [Path(options.mask)] if options.mask is not None else []
    found = [folder / "config.yaml" for folder in (*beside, Path(options.results).parent)]
    return next((read_yaml(str(path)) for path in found if path.is_file()), None)


def _suite_of(results: Any) -> str:
    """The suite that the settings of the results name.

    Raises:
        ValueError: the results are of several suites.
    """
    names = {settings["suite"] for _, settings in _settings(results) if "suite" in settings}
    if len(names) > 1:
        raise ValueError(
            f"The results are of several suites, {', '.join(sorted(names))}: make a file of each, or choose one with --suite."
        )
    return next(iter(names), "tofu")


def _check_measured_on(sets: Mapping[str, Any], results: Any, file: str) -> None:
    """Raise ValueError if the results say that they were measured on more rows than the files have, or on other sets."""
    for label, settings in _settings(results):
        counts: Any = settings.get("examples")
        for name, examples in sets.items() if isinstance(counts, Mapping) else ():
            if counts.get(name, 0) > len(examples):
                raise ValueError(
                    f"The results of {label!r} in {file} were measured on {counts[name]} rows of the {name} set, but "
                    f"{examples.source} has {len(examples)}: it is another file."
                )


def _settings(results: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Label and settings of every run."""
    for label, found in results.items() if isinstance(results, Mapping) else ():
        for run in found if isinstance(found, list) else [found]:
            if isinstance(run, Mapping) and isinstance(run.get("settings"), Mapping):
                yield label, run["settings"]
