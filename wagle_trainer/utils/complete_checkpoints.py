"""Which checkpoints can be resumed from: a run that is killed while it saves leaves an incomplete one."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from wagle_trainer.utils.atomic_files import is_temporary

logger = logging.get_logger(__name__)


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether the Trainer finished this checkpoint: its state, written last, is there and readable."""
    try:
        json.loads((Path(folder) / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return True


def begin_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Make an empty folder for a checkpoint: what another run has left there would be mixed with it.

    The state goes first, so that a run that is killed in between leaves no folder that counts as complete.
    """
    path = Path(folder)
    (path / TRAINER_STATE_NAME).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def remove_leftovers(output_dir: str | os.PathLike[str]) -> None:
    """Remove temporary files that a killed run has left in its checkpoints, where only the Trainer writes."""
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/.*"):
        if is_temporary(path) and path.is_file():
            path.unlink(missing_ok=True)


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


def checkpoint_to_resume(wanted: str | bool | None, output_dir: str | os.PathLike[str]) -> str | None:
    """Return the folder that `train(resume_from_checkpoint=wanted)` means: True is the last complete checkpoint.

    Raises:
        ValueError: the folder named is not complete, or there is none.
    """
    if not wanted:
        return None
    if isinstance(wanted, str):
        if not is_complete(wanted):
            raise ValueError(f"{wanted} is not a complete checkpoint: its trainer_state.json is missing or cut off.")
        return wanted
    folder, skipped = last_complete_checkpoint(output_dir)
    if skipped:
        logger.warning(f"Skipping incomplete checkpoints: {', '.join(skipped)}.")
    if folder is None:
        raise ValueError(f"There is no complete checkpoint in {output_dir} to resume from.")
    return folder
