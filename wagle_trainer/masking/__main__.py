"""Saved masks on the command line: python -m wagle_trainer.masking info | overlap | and | or | minus | not ..."""

from __future__ import annotations

import argparse
import json
import operator
from collections.abc import Callable, Sequence
from typing import Any

from wagle_trainer.masking.mask import MaskMismatchError, WeightMask

OPERATIONS: dict[str, tuple[str, Callable[..., WeightMask]]] = {
    "and": ("weights that both masks select", operator.and_),
    "or": ("weights that either mask selects", operator.or_),
    "minus": ("weights of the first mask that the second does not select", operator.sub),
    "not": ("weights that the mask does not select", operator.invert),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m wagle_trainer.masking", description="Inspect and combine masks.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, *positional: str) -> None:
        one = commands.add_parser(name, help=text, description=text)
        for argument in positional:
            what = "folder to write" if argument == "output" else "a saved mask: folder or Hub id"
            one.add_argument(argument, help=what)
        one.add_argument("--json", action="store_true", help="print JSON")

    command("info", "what a mask selects and how it came about", "mask")
    command("overlap", "Jaccard index of two masks", "mask", "other")
    for name, (text, _) in OPERATIONS.items():
        command(name, text, *(("mask",) if name == "not" else ("mask", "other")), "output")
    options = parser.parse_args(arguments)
    try:
        result = _run(options)
    except (MaskMismatchError, FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items() if key != "score_histogram"))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    masks = [WeightMask.from_pretrained(options.mask)]
    if "other" in options:
        masks.append(WeightMask.from_pretrained(options.other))
    if options.command == "overlap":
        both = (masks[0] & masks[1]).num_selected
        return {"overlap": masks[0].overlap(masks[1]), "selected by both": both}
    if options.command == "info":
        return masks[0].describe() | ({"summary": masks[0].summary()} if options.json else {})
    mask = OPERATIONS[options.command][1](*masks)
    mask.save_pretrained(options.output)
    return mask.describe()


if __name__ == "__main__":
    main()
