"""The name of gradient checkpointing among the training arguments: newer Transformers renamed it."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

_OLD, _NEW = "gradient_checkpointing", "activation_checkpointing"


def checkpointing_argument() -> str:
    """Name of the argument that the installed Transformers does not warn of.

    `SFTConfig(folder, **{checkpointing_argument(): False})` works with all versions.
    """
    return _NEW if _NEW in TrainingArguments.__dataclass_fields__ else _OLD


def use_current_names(arguments: Any) -> None:
    """Put values of the old names under the new ones, before `TrainingArguments.__post_init__` warns of them.

    TRL's own default has the old name, so that the warning would come with every run.

    Args:
        arguments: training arguments that are not complete yet; changed in place.
    """
    if checkpointing_argument() == _OLD:
        return
    for suffix in ("", "_kwargs"):
        if getattr(arguments, _NEW + suffix) is None:
            setattr(arguments, _NEW + suffix, getattr(arguments, _OLD + suffix))
