"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import glob
import os
import re
import secrets
import time
from pathlib import Path

ABANDONED = 3600  # seconds after which the process that wrote a temporary file was killed: no write takes that long
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}$")


def is_temporary(path: Path) -> bool:
    """Whether a file has a name that `write_atomically` uses until the file is complete."""
    return bool(_TEMPORARY.match(path.name))


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to disk, and rename it into place.

    Temporary files that a killed process left for the same path are removed.
    """
    _remove_abandoned(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _remove_abandoned(path: Path) -> None:
    prefix = f".{path.name}."
    for found in path.parent.glob(f"{glob.escape(prefix)}*"):
        try:
            is_ours = re.fullmatch("[0-9a-f]{16}", found.name.removeprefix(prefix)) is not None
            if is_ours and found.stat().st_mtime < time.time() - ABANDONED:
                found.unlink()
        except OSError:  # another process was faster, or may not remove it
            continue
