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
  wagle report results.json --suite muse --title "MUSE news\""""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    parser = make_parser("wagle report", DESCRIPTION, EXAMPLES)
    parser.add_argument("results", help="JSON file of label -> results; 'before' and 'retrained...' are references")
    parser.add_argument("--mask", help="a saved mask: what it selects")
    parser.add_argument("--history", help="history.json of a training run with EvaluationCallback")
    parser.add_argument("--attacks", help="JSON file that `wagle attack --output` wrote: what they recovered")
    parser.add_argument("--config", help="YAML file that the run was made with, to be shown beside its results")
    parser.add_argument("--suite", default="tofu", help="whose results these are (default: %(default)s)")
    parser.add_argument("--title", default="Unlearning report", help="of the page (default: %(default)s)")
    parser.add_argument("--output_dir", default="report", help="folder to write (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=_run, show=show_lines)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.evaluation import load_results
    from wagle_trainer.reporting import write_report

    attacks = None if options.attacks is None else load_results(options.attacks)
    page = write_report(
        load_results(options.results),
        options.output_dir,
        mask=options.mask,
        history=options.history,
        attacks=attacks,
        config=None if options.config is None else _read_config(options.config),
        title=options.title,
        suite=options.suite,
    )
    return {"report": str(page)}


def _read_config(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{path} holds no options, as a file for --config does.")
    return config
