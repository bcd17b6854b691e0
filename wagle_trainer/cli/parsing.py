"""How all commands read their arguments and print their results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.cli.help import CommandParser
from wagle_trainer.utils.trackers import TRACKERS

# Help of the option that every command has.
JSON_HELP = "print the result as JSON on stdout, and nothing else there"


def make_parser(prog: str, description: str, examples: str) -> CommandParser:
    """A parser whose help ends with examples, as they are written."""
    return CommandParser(
        prog=prog,
        description=description,
        epilog=f"examples:\n{examples.strip(chr(10))}",
        formatter_class=_formatter,
    )


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=120)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], dict[str, Any]],
    text: str,
    example: str,
    show: Callable[[dict[str, Any]], str] | None = None,
) -> argparse.ArgumentParser:
    """Add a command to a group's subparsers; `run` and `show` as the module `cli` says."""
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=_formatter,
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run, show=show or show_lines)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How the models that a command measures are loaded and run."""
    parser.add_argument("--batch_size", type=int, default=32, help="examples per forward pass (default: %(default)s)")
    add_dtype_option(parser)


def add_dtype_option(parser: argparse.ArgumentParser) -> argparse.Action:
    """In which number format models are loaded."""
    return parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="number format of the weights (default: auto, as saved)",
    )


def add_format_options(parser: CommandParser) -> None:
    """How questions and answers are written; by default as saved beside the model. Only `--help-all` shows them."""
    style = parser.add_argument(
        "--style",
        default="auto",
        choices=["auto", "chat", "plain"],
        help="how questions and answers are written; auto: as "
        "saved beside the model, or else by the chat template where there is one (default: %(default)s)",
    )
    system_prompt = parser.add_argument("--system_prompt", help="system message before each question (chat)")
    template = parser.add_argument(
        "--chat_template_kwargs", type=json_value, metavar="JSON", help="variables of the chat template"
    )
    thinking = parser.add_argument(
        "--thinking", type=json_value, metavar="true|false", help="whether the model thinks first (chat)"
    )
    affixes = [
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"{text} (plain)")
        for name, text in (
            ("question_prefix", "before each question"),
            ("question_suffix", "between question and answer"),
            ("answer_prefix", "at the start of each answer"),
        )
    ]
    compatibility = parser.add_argument(
        "--compatibility", choices=["open-unlearning"], help="the tokens and labels of OpenUnlearning's code"
    )
    parser.advanced([style, system_prompt, template, thinking, *affixes, compatibility])


def add_tracking_options(parser: argparse.ArgumentParser) -> None:
    """Where the numbers are logged besides --output."""
    parser.add_argument(
        "--log_to",
        nargs="+",
        choices=TRACKERS,
        default=[],
        help="trackers that get the numbers, as a run named --label; tensorboard writes beside --output",
    )


def log_numbers(options: argparse.Namespace, label: str, numbers: Mapping[str, float], settings: Any = None) -> None:
    """Log numbers to the trackers that the options of `add_tracking_options` name."""
    if options.log_to:
        from wagle_trainer.utils.trackers import log_to_trackers

        folder = Path(options.output or ".").parent
        log_to_trackers(options.log_to, label, numbers, settings=settings, folder=folder)


def chosen_format(options: argparse.Namespace, model: str, tokenizer: Any) -> Any:
    """The `QAFormat` that the options of `add_format_options` describe, for the model in a folder."""
    from wagle_trainer.data.forget_and_retain import FORMAT_OPTIONS
    from wagle_trainer.data.qa_format import QAFormat

    given = {name: getattr(options, name) for name in FORMAT_OPTIONS}
    return QAFormat.for_model(model, tokenizer, options.style, **given)


def read_yaml(file: str) -> Mapping[str, Any]:
    """The options in a YAML file.

    Raises:
        ValueError: it is no YAML, or holds something else.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is no YAML file: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{file} holds no options: write one NAME: VALUE a line.")
    return found


def json_value(text: str) -> Any:
    """What JSON holds; a ValueError for anything else, nested too deeply included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def pairs(texts: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE arguments; a value is JSON (a number, true, a list) or else text."""
    found = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not all(part.isidentifier() for part in key.split(".")):
            raise ValueError(f"{text!r} is not of the form KEY=VALUE.")
        try:
            found[key] = json_value(value)
        except ValueError:
            found[key] = value
    return found


def show_lines(result: Mapping[str, Any]) -> str:
    """One line per entry that there is something to say of."""
    return "\n".join(f"{name}: {_number(value)}" for name, value in result.items() if value is not None)


def _number(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
