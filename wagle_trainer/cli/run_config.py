"""The options of a run as a file: `config.yaml` in its output folder, which `--config` accepts again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from wagle_trainer._version import __version__
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.secrets import is_secret, redacted

CONFIG_NAME = "config.yaml"
# Of one call, and not of the run: how its result is printed, and where it went on.
_OF_THE_CALL = ("json", "resume_from_checkpoint")


class RunParser(TrlParser):
    """A `TrlParser` that remembers which options differ from their defaults.

    Attributes:
        given: name -> value as the command line or the file gave it.
    """

    given: dict[str, Any]

    def parse_args_and_config(self, args: Iterable[str] | None = None, *others: Any, **options: Any) -> Any:
        """As `TrlParser.parse_args_and_config`; sets `given`."""
        arguments = list(sys.argv[1:] if args is None else args)
        names = [field.name for one in self.dataclass_types for field in fields(one) if field.init]
        defaults = {name: self.get_default(name) for name in names}
        parsed = super().parse_args_and_config(arguments, *others, **options)
        if "--config" in arguments:  # its values are the parser's defaults by now
            place = arguments.index("--config")
            del arguments[place : place + 2]
        values = vars(self.parse_known_args(arguments)[0])
        self.given = {name: values[name] for name in names if name in values and values[name] != defaults[name]}
        return parsed


def write_run_config(folder: str | os.PathLike[str], given: Mapping[str, Any]) -> Path:
    """Write the options of a run to `config.yaml` in a folder.

    Tokens, passwords and addresses with credentials are left out; a comment names them.

    Args:
        folder: the run's output folder; made if missing.
        given: name -> value, as `RunParser.given`.

    Returns:
        The file's path.
    """
    plain = {name: _plain(value) for name, value in given.items() if name not in _OF_THE_CALL}
    secret = [name for name, value in plain.items() if is_secret(name) or redacted(value) != value]
    lines = [f"# The options of this run, by wagle-trainer {__version__}: --config {CONFIG_NAME} repeats it."]
    if secret:
        lines.append(f"# Left out, since they hold secrets: {', '.join(secret)}.")
    kept = {name: value for name, value in plain.items() if name not in secret}
    path = Path(folder) / CONFIG_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*lines, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)])
    write_atomically(path, text.encode())
    return path


def _plain(value: Any) -> Any:
    """A value as YAML holds it."""
    return json.loads(json.dumps(value, default=lambda other: other.value if isinstance(other, Enum) else str(other)))
