"""Options for files of one's own, the same for `evaluate`, `attack` and `report`; and the sets that they name."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.forget_and_retain import FILE_HELP, READING_HELP, read_set_file, without_overlap
from wagle_trainer.data.overlap import warn_of_overlap

if TYPE_CHECKING:
    from wagle_trainer.data.reading import Examples

logger = logging.getLogger(__name__)

SETS = ("forget", "retain", "unseen")


def add_file_options(parser: argparse.ArgumentParser, *, unseen: bool = True) -> None:
    """The files of one's own: `--forget_file`, `--retain_file` and `--unseen_file`, and how they are read."""
    parser.add_argument("--forget_file", metavar="FILE", help=f"what was to be forgotten: {FILE_HELP}")
    parser.add_argument("--retain_file", metavar="FILE", help="what was to be kept, in the same way")
    if unseen:
        parser.add_argument(
            "--unseen_file",
            metavar="FILE",
            help="rows like those to forget that no model was trained on, in the same way",
        )
    add_reading_options(parser)
    parser.add_argument(
        "--drop_overlap", action="store_true", help="take rows out of the retain set that are in the forget set, too"
    )


def add_reading_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """How files are read whose columns or encoding are not known by themselves."""
    return [
        parser.add_argument(f"--{name}", metavar="NAME", help=f"{text[0].lower()}{text[1:].rstrip('.')}")
        for name, text in READING_HELP.items()
    ]


def read_own_sets(options: argparse.Namespace) -> dict[str, Examples]:
    """The sets that the options of `add_file_options` name; none if none is named.

    Raises:
        FileNotFoundError, ValueError: as `read_examples`; or there is another file, but no forget file.
    """
    files = {name: getattr(options, f"{name}_file", None) for name in SETS}
    given = {name: file for name, file in files.items() if file is not None}
    if given and "forget" not in given:
        raise ValueError(f"--{next(iter(given))}_file needs --forget_file beside it.")
    sets = {name: read_set_file(file, options) for name, file in given.items()}
    if "retain" in sets:
        if options.drop_overlap:
            sets["retain"] = without_overlap(sets["forget"], sets["retain"])
        else:
            warn_of_overlap(sets["forget"].rows, sets["retain"].rows)
    return sets


def check_beside_files(dataset_name: str | None, data_options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the other options of data go with files of one's own."""
    if dataset_name is not None:
        raise ValueError("Give either --dataset_name or --forget_file, not both.")
    unknown = [name for name in data_options if name != "limit"]
    if unknown:
        raise ValueError(
            f"--data_options take no {', '.join(unknown)} beside --forget_file; they take limit. Columns are named by "
            "--question_column and so on."
        )


def tell(sets: dict[str, Examples], tokenizer: Any = None) -> None:
    """Log what was understood of each set."""
    for examples in sets.values():
        logger.info(examples.report(tokenizer))
