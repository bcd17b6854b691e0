"""`wagle forget`: from a file of what to forget to a verdict."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from wagle_trainer.cli.help import CommandParser
from wagle_trainer.cli.own_files import add_reading_options
from wagle_trainer.cli.parsing import (
    JSON_HELP,
    add_dtype_option,
    add_format_options,
    json_value,
    make_parser,
    read_yaml,
)
from wagle_trainer.data.forget_and_retain import FILE_HELP, FORMAT_OPTIONS, READING_HELP
from wagle_trainer.forgetting.settings import ATTACKS, EMBEDDINGS, ForgetSettings

DESCRIPTION = """Make a model forget what is in a file, with the smallest patch that does it, and say how well it worked.

Reads the file and says what it understood (--dry_run stops there); takes the retain file, or makes neighbours: questions of
the same kind about other things; measures; trains patches, smallest first, until the answers to forget are gone and the
others are still there; attacks the result; writes the patch (OUT/adapter), OUT/report.html and OUT/verdict.json.

Exit code: 0 forgotten, and the rest kept; 3 not; 1 refused, with the reason. A run that was stopped goes on where it was."""
EXAMPLES = """
  wagle forget MODEL --forget_file forget.jsonl --output_dir out
  wagle forget MODEL --forget_file forget.jsonl --retain_file retain.jsonl --output_dir out
  wagle forget MODEL --forget_file forget.csv --output_dir out --dry_run
  wagle forget MODEL --forget_file forget.jsonl --output_dir out --forget_goal 0.05 --densities 0.001 0.003 0.01"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    parser = make_parser("wagle forget", DESCRIPTION, EXAMPLES)
    parser.add_argument("model", nargs="?", help="the model that is to forget: folder or Hub id")
    parser.add_argument("--forget_file", metavar="FILE", help=FILE_HELP)
    parser.add_argument("--retain_file", metavar="FILE", help="what must stay, in the same way; made if not given")
    parser.add_argument("--output_dir", help="where patch, report and verdict go")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of options, such as the config.yaml of another run"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="say what was understood and how long it takes, and stop"
    )
    _add_search_options(parser)
    parser.advanced(add_reading_options(parser))
    add_format_options(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=_run, show=show_verdict)
    options = parser.parse_args(arguments)
    if options.config is not None:
        parser.set_defaults(**_read_config(options.config, parser))
        options = parser.parse_args(arguments)
    missing = [name for name in ("model", "--forget_file", "--output_dir") if not getattr(options, name.strip("-"))]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return options


def _read_config(file: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Options of a YAML file, read and checked as those of the command line are.

    Raises:
        ValueError: it is no mapping, has an option that there is not, or several values where there is one.
        SystemExit: 2 for a value that the command line refuses.
    """
    found = {name: value for name, value in read_yaml(file).items() if value is not None}
    actions = {action.dest: action for action in parser._actions if action.dest not in ("config", "help")}
    if unknown := [str(name) for name in found if name not in actions]:
        raise ValueError(f"{file} has options that are unknown: {', '.join(unknown)}.")
    ordered = sorted(found, key=lambda name: bool(actions[name].option_strings))  # lists would swallow the model
    given = [text for name in ordered for text in _as_arguments(actions[name], found[name])]
    options = vars(parser.parse_args(given))
    return {name: options[name] for name in found}


def _as_arguments(action: argparse.Action, value: Any) -> list[str]:
    """A value in YAML as the command line has it."""
    if action.nargs == 0:  # a flag
        return list(action.option_strings) if value else []
    if isinstance(value, list):
        if action.nargs not in ("+", "*"):
            raise ValueError(f"{action.dest} takes one value, got {value}.")
        return [*action.option_strings, *map(str, value)]
    text = json.dumps(value) if isinstance(value, bool | dict) else str(value)
    return [f"{name}={text}" for name in action.option_strings] or [text]


def _add_search_options(parser: CommandParser) -> None:
    """Add goal, floor and what is tried: the fields of `ForgetSettings`, whose defaults they have."""

    def add(name: str, text: str, default: str = "", **options: Any) -> argparse.Action:
        value = getattr(ForgetSettings, name)
        shown = default or " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in _listed(value))
        return parser.add_argument(f"--{name}", help=f"{text} (default: {shown})", **options)

    add("forget_goal", "share of their probability that the answers may keep", type=float)
    add("utility_floor", "share of their probability that the other answers must keep", type=float)
    add("densities", "patch sizes to try", type=float, nargs="+", metavar="SHARE")
    add("max_tries", "patches that are trained at most", type=int)
    add("attacks", f"out of {', '.join(ATTACKS)}", "all; none after --attacks: none", nargs="*", metavar="NAME")
    parser.add_argument(
        "--save_generations",
        action="store_true",
        default=None,
        help="keep questions, answers and what the model says, and show three in the report; by default report and verdict "
        "hold no text of the file, which may be private",
    )
    parser.advanced(
        [
            add("score", "attribution score that chooses the weights"),
            add(
                "embeddings",
                "when the patch may change word embeddings and the head: in the last round, if the words stay; never; always",
                choices=EMBEDDINGS,
            ),
            add("learning_rates", "to try", type=float, nargs="+", metavar="RATE"),
            add("steps", "optimizer steps of each try at most", type=int),
            add("check_every", "steps between two looks at goal and floor", type=int),
            add("batch_size", "forget examples in each step", type=int),
            add("loss_type", "unlearning objective"),
            add(
                "loss_kwargs",
                "its arguments",
                "for npo those that suit short and long answers",
                type=json_value,
                metavar="JSON",
            ),
            add("known", "probability from which an answer counts as known", type=float),
            add("retain_weight", "factor of the retain loss", type=float),
            add("neighbours", "how many to make", "12 for each row to forget, 192 to 480", type=int),
            add("relearning_rate", "learning rate of that attack", type=float),
            add("eval_batch_size", "examples per forward pass", type=int),
            add("seed", "of everything random", type=int),
            add_dtype_option(parser),
        ]
    )


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `ForgetSettings` that were given."""
    names = [field.name for field in fields(ForgetSettings)]
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.forgetting import forget, plan

    arguments = {
        "retain_file": options.retain_file,
        "reading": {name: getattr(options, name) for name in READING_HELP},
        "settings": ForgetSettings(**chosen_settings(options)),
        "format_options": {name: getattr(options, name) for name in ("style", *FORMAT_OPTIONS)},
        "dtype": options.dtype,
    }
    if options.dry_run:
        found = plan(options.model, options.forget_file, **arguments)
        options.show = lambda _: str(found)
        return found.as_dict()
    verdict = forget(options.model, options.forget_file, options.output_dir, **arguments)
    options.exit_code = verdict.exit_code
    return verdict.as_dict()


def show_verdict(result: dict[str, Any]) -> str:
    """The sentences, and what to do next."""
    return "\n".join([*result["sentences"], result["next"]])
