"""`wagle forget`: from a file of what to forget to a verdict."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from wagle_trainer.cli.parsing import JSON_HELP, add_format_options, json_value, make_parser
from wagle_trainer.data.forget_and_retain import FILE_HELP, FORMAT_OPTIONS, READING_HELP

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
    parser.advanced(add_search_options(parser))
    parser.advanced(
        parser.add_argument(f"--{name}", metavar="NAME", help=f"{text[0].lower()}{text[1:].rstrip('.')}")
        for name, text in READING_HELP.items()
    )
    add_format_options(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=_run, show=show_verdict)
    options = parser.parse_args(arguments)
    if options.config is not None:
        parser.set_defaults(**_read_config(options.config, {action.dest for action in parser._actions}))
        options = parser.parse_args(arguments)
    missing = [name for name in ("model", "--forget_file", "--output_dir") if not getattr(options, name.strip("-"))]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return options


def _read_config(file: str, known: set[str]) -> dict[str, Any]:
    """Options of a YAML file.

    Raises:
        ValueError: it is no mapping, or has an option that there is not.
    """
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no options: write one NAME: VALUE a line.")
    unknown = [str(name) for name in found if name not in known or name in ("config", "help")]
    if unknown:
        raise ValueError(f"{file} has options that are unknown: {', '.join(unknown)}.")
    return found


def add_search_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add goal, floor and what is tried; without a default here, that of `ForgetSettings`.

    Returns:
        Those that few users need.
    """
    parser.add_argument(
        "--forget_goal", type=float, help="share of their probability that the answers may keep (default: 0.1)"
    )
    parser.add_argument(
        "--utility_floor",
        type=float,
        help="share of their probability that the other answers must keep (default: 0.9)",
    )
    parser.add_argument(
        "--densities",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="patch sizes to try (default: 0.001 0.003 0.01 0.1)",
    )
    parser.add_argument("--max_tries", type=int, help="patches that are trained at most (default: 8)")
    parser.add_argument(
        "--attacks",
        nargs="*",
        metavar="NAME",
        help="out of relearning, paraphrase, jailbreak, quantization (default: all; none after --attacks: none)",
    )
    parser.add_argument(
        "--save_generations",
        action="store_true",
        default=None,
        help="keep questions, answers and what the model says, and show three in the report; by default report and verdict "
        "hold no text of the file, which may be private",
    )
    return [
        parser.add_argument("--score", help="attribution score that chooses the weights (default: snip)"),
        parser.add_argument(
            "--learning_rates",
            type=float,
            nargs="+",
            metavar="RATE",
            help="to try (default: 0.001 0.003 0.01 0.02 0.04)",
        ),
        parser.add_argument("--steps", type=int, help="optimizer steps of each try at most (default: 80)"),
        parser.add_argument("--check_every", type=int, help="steps between two looks at goal and floor (default: 5)"),
        parser.add_argument("--batch_size", type=int, help="forget examples in each step (default: 8)"),
        parser.add_argument("--loss_type", help="unlearning objective (default: npo)"),
        parser.add_argument("--loss_kwargs", type=json_value, metavar="JSON", help="its arguments"),
        parser.add_argument(
            "--known", type=float, help="probability from which an answer counts as known (default: 0.1)"
        ),
        parser.add_argument("--retain_weight", type=float, help="factor of the retain loss (default: 2)"),
        parser.add_argument(
            "--neighbours", type=int, help="how many to make (default: 6 for each row to forget, 96 to 480)"
        ),
        parser.add_argument("--relearning_rate", type=float, help="learning rate of that attack (default: 0.0001)"),
        parser.add_argument("--eval_batch_size", type=int, help="examples per forward pass (default: 32)"),
        parser.add_argument("--seed", type=int, help="of everything random (default: 0)"),
        parser.add_argument(
            "--dtype",
            default="auto",
            choices=["auto", "float32", "bfloat16", "float16"],
            help="number format of the weights (default: auto, as saved)",
        ),
    ]


SEARCH_OPTIONS = (
    *("forget_goal", "utility_floor", "score", "densities", "learning_rates", "max_tries", "steps", "batch_size"),
    *(
        "check_every",
        "loss_type",
        "retain_weight",
        "neighbours",
        "attacks",
        "relearning_rate",
        "eval_batch_size",
        "seed",
    ),
)


def chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `ForgetSettings` that were given."""
    return {name: value for name in SEARCH_OPTIONS if (value := getattr(options, name)) is not None}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.forgetting import ForgetSettings, forget, plan

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
    """The five sentences."""
    return "\n".join(result["sentences"])
