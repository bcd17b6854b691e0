"""The mask of a resumed run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from wagle_trainer.masking.mask import WeightMask
from wagle_trainer.masking.mask_files import CONFIG_NAME


def resumed_mask(
    candidates: Sequence[str], step: int, given: WeightMask | None, requested: Mapping[str, Any]
) -> WeightMask:
    """The mask that the run has been trained with.

    Args:
        candidates: folders that may be the checkpoint, the most likely first.
        step: the step that the run resumes at.
        given: the mask that the resumed run was given, if any.
        requested: fields of `MaskInfo` that a computed mask must have, if no mask is given.

    Raises:
        FileNotFoundError: no candidate has a mask, and none is given.
        ValueError: the mask of the checkpoint differs from the given or requested one.
    """
    folder = next((c for c in candidates if os.path.isfile(os.path.join(c, CONFIG_NAME))), None)
    if folder is None and given is not None:
        return given
    if folder is None:
        raise FileNotFoundError(
            f"The run resumes at step {step}, but there is no mask in {' or '.join(candidates)}. A new "
            "one cannot be computed from trained weights: pass mask=, the folder of the mask that the run started "
            "with, or set args.resume_from_checkpoint to the checkpoint's folder."
        )
    mask = WeightMask.from_pretrained(folder)
    if given is not None and given != mask:
        raise ValueError(f"The given mask is not the one that the checkpoint in {folder} was trained with.")
    changed = {
        name: (getattr(mask.info, name), value)
        for name, value in requested.items()
        if given is None and getattr(mask.info, name) != value
    }
    if changed:
        raise ValueError(
            f"The checkpoint in {folder} was trained with another mask: "
            + "; ".join(f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items())
            + ". Resume with the old values, or start a new run."
        )
    return mask
