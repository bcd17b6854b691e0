"""The two helps of every command: `--help` shows the options that matter, `--help-all` shows all of them."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WIDTH = 112
_INDENT = 34
HELP, HELP_ALL = "show the options that matter, and exit", "show all options, and exit"


class HelpAll(argparse.Action):
    """Print the help with all options, and exit."""

    def __init__(self, option_strings: Any, dest: str = argparse.SUPPRESS, help: str | None = None, **_: Any):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


def add_both_helps(parser: argparse.ArgumentParser) -> None:
    """Add `--help` and `--help-all` to a parser that was made with `add_help=False` and has `format_help_all`."""
    parser.add_argument("-h", "--help", action="help", default=argparse.SUPPRESS, help=HELP)
    parser.add_argument("--help-all", action=HelpAll, help=HELP_ALL)


class CommandParser(argparse.ArgumentParser):
    """A parser whose `--help` leaves out the options that `advanced` marks."""

    def __init__(self, *, add_help: bool = True, **options: Any):
        super().__init__(add_help=False, **options)
        self._is_advanced: list[argparse.Action] = []
        if add_help:
            add_both_helps(self)

    def advanced(self, actions: Iterable[argparse.Action]) -> None:
        """Leave these options out of `--help`; `--help-all` has them."""
        self._is_advanced += actions

    def format_help(self) -> str:
        """The help without advanced options."""
        with self._without_advanced():
            return super().format_help()

    def format_usage(self) -> str:
        """The usage without advanced options, so that an error below it is seen."""
        with self._without_advanced():
            return super().format_usage()

    @contextmanager
    def _without_advanced(self) -> Iterator[None]:
        texts = [action.help for action in self._is_advanced]
        for action in self._is_advanced:
            action.help = argparse.SUPPRESS
        try:
            yield
        finally:
            for action, text in zip(self._is_advanced, texts, strict=True):
                action.help = text

    def format_help_all(self) -> str:
        """The help with all options."""
        return super().format_help()


def grouped_help(
    usage: str, description: str, groups: Mapping[str, Mapping[str, tuple[str, Any]]], examples: str
) -> str:
    """A help text with the options in groups.

    Args:
        usage: one line.
        description: as it is printed.
        groups: title -> option, with its value's name, such as `--density SHARE` -> its text, and its default or None.
        examples: as they are printed.
    """
    lines = [f"usage: {usage}", "", description]
    for title, options in groups.items():
        lines += ["", f"{title}:"]
        for option, (text, default) in options.items():
            shown = text if default is None else f"{text} (default: {default})"
            wrapped = textwrap.wrap(shown, WIDTH - _INDENT)
            first = f"  {option}".ljust(_INDENT - 2)
            if len(first) > _INDENT - 2:
                lines.append(first)
                first = " " * (_INDENT - 2)
            lines.append(f"{first}  {wrapped[0]}")
            lines += [" " * _INDENT + line for line in wrapped[1:]]
    return "\n".join([*lines, "", f"examples:\n{examples.strip(chr(10))}", ""])
