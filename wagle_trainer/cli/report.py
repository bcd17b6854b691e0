"""`wagle report`: the page that `write_report` makes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.cli.parsing import JSON_HELP, make_parser, show_lines

DESCRIPTION = """Make a page of results (what `wagle evaluate --output` or a recipe wrote), with their intervals, figures and example
answers. Writes report.html, which needs no other file and no network, and the numbers and plots behind it."""
EXAMPLES = """
  wagle report results.json
  wagle report results.json --mask out --history out/history.json --attacks attacks.json --output_dir report
  wagle report out/results.json --verdict out/verdict.json --answers 0
  wagle report results.json --formats csv latex
  wagle report results.json --suite muse --title "MUSE news\""""


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
    parser.add_argument("--suite", default="tofu", help="whose results these are (default: %(default)s)")
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

    attacks = None if options.attacks is None else load_results(options.attacks)
    page = write_report(
        load_results_by_label(options.results),
        options.output_dir,
        mask=options.mask,
        history=options.history,
        attacks=attacks,
        config=_config(options),
        verdict=None if options.verdict is None else load_results(options.verdict),
        answers=options.answers,
        title=options.title,
        suite=options.suite,
    )
    if options.formats:
        write_tables(load_results(page.with_name("report.json")), options.output_dir, options.formats)
    return {"report": str(page)}


def _config(options: argparse.Namespace) -> Mapping[str, Any] | None:
    """The run's options: of the named file, or of the one that a run writes beside its mask or results."""
    if options.config is not None:
        return _read_config(options.config)
    beside = [Path(options.mask)] if options.mask is not None else []
    found = [folder / "config.yaml" for folder in (*beside, Path(options.results).parent)]
    return next((_read_config(str(path)) for path in found if path.is_file()), None)


def _read_config(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{path} holds no options, as a file for --config does.")
    return config
