"""Which checkpoints can be resumed from: a run that was killed while it saved leaves half of one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether the Trainer finished writing this checkpoint: its state, written last, is there and readable."""
    try:
        json.loads((Path(folder) / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return True


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> tuple[str | None, list[str]]:
    """The complete checkpoint with the highest step in `output_dir`, and the incomplete ones above it."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)$")
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if pattern.match(path.name)]
    skipped: list[str] = []
    for folder in sorted(folders, key=lambda path: -int(path.name.rpartition("-")[2])):
        if is_complete(folder):
            return str(folder), skipped
        skipped.append(str(folder))
    return None, skipped
