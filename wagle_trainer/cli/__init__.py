"""The command line `wagle`: one file per group of commands, each a thin wrapper over the Python API.

A group's file has a function `parse(arguments)` that returns a namespace with `run`, a function of that namespace which
does the work and returns what JSON can hold, `show`, which makes text of it, and the flag `json`. Only the file of the
command at hand is imported, so that `wagle --help` needs neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module

from wagle_trainer._version import __version__
from wagle_trainer.cli.parsing import make_parser

GROUPS = {
    "demo": "see the whole in two minutes: a small model forgets four invented people",
    "forget": "make a model forget what is in a file: from the file to a patch and a verdict",
    "unlearn": "train a model to forget",
    "attribute": "score the weights of a model and save the mask, without training",
    "mask": "inspect and combine saved masks",
    "evaluate": "measure what a model still knows",
    "attack": "try to recover what a model has forgotten",
    "compare": "compare objectives, scores, densities and learning rates over seeds",
    "report": "make a page of results, mask, training history and attacks",
    "adapter": "inspect, check, merge, combine and make sparse adapters",
    "recipes": "list and copy the recipes and their configurations",
}
# Commands that need no arguments; others show their help where there are none.
RUN_ALONE = ("demo",)
EXAMPLES = """
  wagle demo
  wagle forget MODEL --forget_file forget.jsonl --output_dir out
  wagle unlearn --model_name_or_path MODEL --forget_file forget.jsonl --retain_file retain.jsonl --density 0.05 --learning_rate 1e-3 --output_dir out
  wagle evaluate MODEL --forget_file forget.jsonl --retain_file retain.jsonl --label before --output results.json
  wagle evaluate out --forget_file forget.jsonl --retain_file retain.jsonl --label after --output results.json
  wagle attack MODEL out --forget_file forget.jsonl --retain_file retain.jsonl --label after --output attacks.json
  wagle report results.json --mask out --attacks attacks.json --output_dir report

Every command has its own --help with examples."""
# What a user can fix. Anything else is a fault of ours and shows its traceback.
REFUSALS = (ValueError, OSError, ImportError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; those of the process if None.

    Returns:
        Exit code: 0, or 1 for an input that was refused, with the reason on stderr.

    Raises:
        SystemExit: 2 for wrong usage, 0 for help, as argparse does.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser(
        "wagle", "Make a language model forget, and change only a chosen share of its weights.", EXAMPLES
    )
    parser.add_argument("--version", action="version", version=f"wagle-trainer {__version__}")
    commands = parser.add_subparsers(dest="group", metavar="COMMAND", required=True)
    for name, text in GROUPS.items():
        commands.add_parser(name, help=text, add_help=False)
    group = parser.parse_args(given[:1] or ["--help"]).group
    try:
        options = import_module(f"{__name__}.{group}").parse(given[1:] or ([] if group in RUN_ALONE else ["--help"]))
        with _logs(), contextlib.redirect_stdout(sys.stderr):  # trainers print their logs
            result = options.run(options)
        text = json.dumps(result, indent=2, allow_nan=False) if options.json else options.show(result)
    except REFUSALS as error:
        print(f"wagle {group}: {error}", file=sys.stderr)
        return 1
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(text)
    return getattr(options, "exit_code", 0)


@contextlib.contextmanager
def _logs() -> Iterator[None]:
    """This package's own log on stderr while a command runs: which mask it was, which modules were chosen.

    A warning is said once, and without the line of code that it comes from.
    """
    logger, handler = logging.getLogger("wagle_trainer"), logging.StreamHandler(sys.stderr)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # other packages give the root logger a handler, which would say it all again
    once = _Once()
    handler.addFilter(once)
    with warnings.catch_warnings():
        warnings.showwarning = once.show
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _Once(logging.Filter):
    """Lets every warning pass once, whether it is logged or issued."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or self._is_new(record.getMessage())

    def show(self, message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        """As `warnings.showwarning`, which this takes the place of."""
        if self._is_new(str(message)):
            print(f"{category.__name__}: {message}", file=sys.stderr)

    def _is_new(self, text: str) -> bool:
        if text in self.seen:
            return False
        self.seen.add(text)
        return True
