"""`wagle mask`: saved masks, looked at and combined as the operators of `WeightMask` do."""

from __future__ import annotations

import argparse
import operator
from collections.abc import Callable, Sequence
from typing import Any

from wagle_trainer.cli.parsing import add_command, make_parser, show_lines
from wagle_trainer.utils.percent import percent
from wagle_trainer.utils.text_table import text_table

OPERATIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "and": ("weights that both masks select", operator.and_),
    "or": ("weights that either mask selects", operator.or_),
    "minus": ("weights of the first mask that the second does not select", operator.sub),
    "not": ("weights that the mask does not select", operator.invert),
}
EXAMPLES = """
  wagle mask info masks/wagle
  wagle mask overlap masks/wagle masks/random
  wagle mask minus masks/second_request masks/first_request masks/rest
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    parser = make_parser("wagle mask", "Inspect and combine saved masks: folders or Hub ids.", EXAMPLES)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    one = add_command(
        commands,
        "info",
        _info,
        "what a mask selects, and how it came about",
        "wagle mask info masks/wagle",
        _show_info,
    )
    one.add_argument("mask", help="a saved mask: folder or Hub id")
    two = add_command(
        commands,
        "overlap",
        _overlap,
        "Jaccard index of two masks, beside what chance would give",
        "wagle mask overlap masks/wagle masks/random",
    )
    two.add_argument("mask", help="a saved mask: folder or Hub id")
    two.add_argument("other", help="another one")
    for name, (text, _) in OPERATIONS.items():
        masks = ["mask"] if name == "not" else ["mask", "other"]
        example = f"wagle mask {name} {' '.join(f'masks/{letter}' for letter, _ in zip('ab', masks, strict=False))} masks/new"
        command = add_command(commands, name, _combine, text, example)
        for argument in masks:
            command.add_argument(argument, help="a saved mask: folder or Hub id")
        command.add_argument("output", help="folder to write")
    return parser.parse_args(arguments)


def _load(options: argparse.Namespace) -> list[Any]:
    from wagle_trainer.masking import WeightMask

    names = [options.mask, *([options.other] if "other" in options else [])]
    return [WeightMask.from_pretrained(name) for name in names]


def _info(options: argparse.Namespace) -> dict[str, Any]:
    [mask] = _load(options)
    return {**mask.describe(), "summary": mask.summary()}


def _show_info(result: dict[str, Any]) -> str:
    lines = show_lines({name: value for name, value in result.items() if name not in ("summary", "score_histogram")})
    return "\n".join([lines, *(f"\nby {group}\n{table(result['summary'][group])}" for group in ("module", "layer"))])


def table(counts: dict[str, dict[str, Any]]) -> str:
    """One group of `WeightMask.summary` as aligned text."""
    rows = [
        [f"  {name}", f"{entry['selected']:,}", "of", f"{entry['total']:,}", percent(entry["density"])]
        for name, entry in counts.items()
    ]
    return text_table(rows, header=0)


def _overlap(options: argparse.Namespace) -> dict[str, Any]:
    mask, other = _load(options)
    both = (mask & other).num_selected
    by_chance = mask.density * other.density * mask.num_weights
    either = mask.num_selected + other.num_selected
    return {
        "overlap": mask.overlap(other),
        "overlap by chance": by_chance / max(either - by_chance, 1),
        "selected by both": both,
    }


def _combine(options: argparse.Namespace) -> dict[str, Any]:
    mask = OPERATIONS[options.command][1](*_load(options))
    mask.save_pretrained(options.output)
    return mask.describe()
