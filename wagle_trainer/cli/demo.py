"""`wagle demo`: the whole of `wagle forget` on invented people."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from wagle_trainer.cli.forget import show_verdict
from wagle_trainer.cli.parsing import JSON_HELP, make_parser

DESCRIPTION = """See the whole in two minutes, without a network: teaches 40 invented people to a small Llama, makes it forget four
of them, attacks the result, and writes the patch, a report and the verdict. The same on your own model and file: wagle forget."""
EXAMPLES = """
  wagle demo
  wagle demo --output_dir elsewhere"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    parser = make_parser("wagle demo", DESCRIPTION, EXAMPLES)
    parser.add_argument("--output_dir", default="wagle-demo", help="where everything goes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the model (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=_run, show=show_verdict)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.forgetting.demo import demo

    verdict = demo(options.output_dir, seed=options.seed)
    options.exit_code = verdict.exit_code
    return verdict.as_dict()
