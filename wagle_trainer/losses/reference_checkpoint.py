"""The file in a checkpoint that holds reference log-probabilities and the state of the objective: `ReferenceFile`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wagle_trainer.data.pairing import SPLITS
from wagle_trainer.utils.atomic_files import write_atomically

REFERENCE_NAME = "reference_log_probs.safetensors"
_OLD_NAMES = {"preferred": "chosen"}  # splits in files of wagle-trainer 0.1.0.dev
_DIGEST, _SETTINGS = "digest", "settings"


@dataclass
class ReferenceFile:
    """What a checkpoint keeps of the reference model and of the objective.

    Attributes:
        log_probs: split -> float32 (examples, longest answer), in nats.
        identities: split -> float32 (examples,), log-probability of each full answer, zero where it is not known; they
            identify the reference model where logits or hidden states are computed again.
        objective: name -> tensor, the `state()` of the forget loss.
        fingerprints: split -> digest of the tokenized set.
        settings: name -> value in JSON, the arguments that a resumed run must share; empty in files of older versions.
    """

    log_probs: Mapping[str, Tensor] = field(default_factory=dict)
    identities: Mapping[str, Tensor] = field(default_factory=dict)
    objective: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the file, with a digest of its tensors."""
        tensors = dict(self.log_probs)
        tensors |= {f"{split}_before": values for split, values in self.identities.items()}
        tensors |= {f"loss.{name}": value for name, value in self.objective.items()}
        settings = json.dumps(self.settings, default=str)
        metadata = {**self.fingerprints, _SETTINGS: settings, _DIGEST: _digest(tensors)}
        write_atomically(folder / REFERENCE_NAME, save(tensors, metadata=metadata))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ReferenceFile:
        """Read the file; files without a digest, of older versions, are read as well.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        path = Path(folder) / REFERENCE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{os.fspath(folder)} has no {REFERENCE_NAME}: it is not a checkpoint of a WagleTrainer."
            )
        try:
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Resume from another checkpoint.") from error
        digest = metadata.pop(_DIGEST, None)
        if digest is not None and digest != _digest(tensors):
            raise ValueError(f"{path} was altered or replaced: its digest differs. Resume from another checkpoint.")
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
        return cls(
            log_probs={split: tensors[split] for split in SPLITS if split in tensors},
            identities={split: tensors[f"{split}_before"] for split in SPLITS if f"{split}_before" in tensors},
            objective={name.removeprefix("loss."): t for name, t in tensors.items() if name.startswith("loss.")},
            fingerprints={_renamed(name): text for name, text in metadata.items() if _renamed(name) in SPLITS},
            settings=json.loads(metadata.get(_SETTINGS, "{}")),
        )

    def check_data(self, fingerprints: Mapping[str, str], folder: str) -> None:
        """Raise ValueError unless the sets of a run, by their fingerprints, are those of the file."""
        for split, fingerprint in self.fingerprints.items():
            if fingerprints.get(split) != fingerprint:
                raise ValueError(
                    f"The {split} set is not the one that the checkpoint in {folder} was trained on: its tokens "
                    "differ. Resume with the same data and tokenizer, or start a new run."
                )

    def check_settings(self, settings: Mapping[str, Any], folder: str) -> None:
        """Raise ValueError unless a run has the settings of the file, as far as the file holds them."""
        now = json.loads(json.dumps(settings, default=str))
        changed = [name for name, value in self.settings.items() if name in now and now[name] != value]
        if changed:
            raise ValueError(
                f"The checkpoint in {folder} is of a run with other settings: "
                + ", ".join(f"{name} was {self.settings[name]!r} and is now {now[name]!r}" for name in changed)
                + ". Resume with the old values, or start a new run."
            )


def _renamed(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name in (old, f"{old}_before"):
            return name.replace(old, new)
    return name


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
