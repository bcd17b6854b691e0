"""The two files of an adapter: their names, what is where in them, and reading the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wagle_trainer.masking.mask import POSITIONS_KEY

FORMAT_VERSION = 1
PEFT_TYPE = "WAGLE"
WEIGHTS_NAME = "adapter_model.safetensors"  # these two names are PEFT's
CONFIG_NAME = "adapter_config.json"
KEY_PREFIX = "base_model.model."  # as in every PEFT adapter file


def keys_of(name: str) -> tuple[str, str]:
    """Under what keys positions and values of one parameter are saved."""
    return POSITIONS_KEY.format(name), f"{KEY_PREFIX}{name}.values"


def read_config(config_file: Path) -> dict[str, Any]:
    """`adapter_config.json` of a WAGLE adapter.

    Raises:
        ValueError: it is not one, or of a format version that is not known.
    """
    try:
        config = json.loads(config_file.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{config_file} is not a readable adapter configuration: {error!r}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != PEFT_TYPE:
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{config_file} is of a {kind!r} adapter, not of a {PEFT_TYPE!r} one.")
    check_version(config.get("format_version"), str(config_file))
    if missing := [key for key in ("digest", "tensors") if not config.get(key)]:
        raise ValueError(f"{config_file} is not a readable adapter configuration: it has no {missing[0]!r}.")
    return config


def is_adapter(config_file: Path) -> bool:
    """Whether this is the configuration of a WAGLE adapter."""
    try:
        return json.loads(config_file.read_text()).get("peft_type") == PEFT_TYPE
    except (OSError, ValueError, AttributeError):
        return False


def check_version(version: Any, where: str) -> None:
    """Raise ValueError for a format version that is not known."""
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{where} has adapter format version {version!r}; this wagle_trainer reads {FORMAT_VERSION}. Update "
            "wagle-trainer."
        )
