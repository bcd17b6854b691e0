"""Results on the trackers that training logs to: wandb, trackio, tensorboard, through accelerate's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.utils.secrets import redacted

TRACKERS = ("wandb", "trackio", "tensorboard")
PROJECT = "wagle"


def check_trackers(names: Sequence[str]) -> None:
    """Raise unless these trackers are known and installed.

    Args:
        names: out of `TRACKERS`.

    Raises:
        ValueError: an unknown name.
        ImportError: a tracker's package is missing.
    """
    from accelerate.tracking import get_available_trackers

    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise ValueError(f"Unknown tracker {', '.join(unknown)}. Known: {', '.join(TRACKERS)}.")
    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    missing = [name for name in names if name not in available]
    if missing:
        raise ImportError(f"The tracker is not installed: pip install {' '.join(missing)}.")


def log_to_trackers(
    names: Sequence[str],
    label: str,
    numbers: Mapping[str, float],
    *,
    settings: Mapping[str, Any] | None = None,
    folder: str | Path = ".",
) -> None:
    """Log numbers as one run of each tracker; several processes may call it, the main one logs.

    Args:
        names: the trackers, out of `TRACKERS`.
        label: name of the run.
        numbers: name -> value.
        settings: configuration of the run; secrets are left out, and what is no number, text or truth value becomes text.
        folder: where tensorboard's files go, in `tensorboard/<label>`.

    Raises:
        ValueError, ImportError: as `check_trackers`.
    """
    from accelerate import Accelerator

    check_trackers(names)
    shown = {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in redacted(dict(settings or {})).items()
        if value is not None
    }
    safe = "".join(character if character.isalnum() or character in "._-" else "_" for character in label)
    accelerator = Accelerator(log_with=list(names), project_dir=str(Path(folder) / "tensorboard" / safe))
    accelerator.init_trackers(
        PROJECT,
        config=shown,
        init_kwargs={name: {"name": label} for name in names if name in ("wandb", "trackio")},
    )
    try:
        accelerator.log({name: float(value) for name, value in numbers.items()}, step=0)
    finally:
        accelerator.end_training()
        if "trackio" in names:
            _forget_trackio_run()


def _forget_trackio_run() -> None:
    """Let trackio know that its run is over; accelerate tells the run alone, and trackio would end it again at exit."""
    import trackio

    with contextlib.suppress(RuntimeError):  # on other processes, and where there is no run
        trackio.finish()
