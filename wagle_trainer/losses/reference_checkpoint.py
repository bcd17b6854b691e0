"""The file in a checkpoint that holds reference log-probabilities and the state of the objective: `ReferenceFile`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers.utils import logging

from wagle_trainer.data.pairing import SPLITS
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.keyed_digests import KEY_NAME, KEY_VARIABLE, is_of

logger = logging.get_logger(__name__)

REFERENCE_NAME = "reference_log_probs.safetensors"
_OLD_NAMES = {"preferred": "chosen"}  # splits in files of wagle-trainer 0.1.0.dev
_OUTPUTS = [f"{split}_{kind}" for split in SPLITS for kind in ("logits", "states")]
_DIGEST, _SETTINGS = "content_digest", "settings"
_OLD_DIGEST = "digest"  # of the tensors alone


@dataclass
class ReferenceFile:
    """What a checkpoint keeps of the reference model and of the objective.

    Attributes:
        log_probs: split -> float32 (examples, longest answer), in nats.
        identities: split -> float32 (examples,), log-probability of each full answer, zero where it is not known; they
            identify the reference model where logits or hidden states are computed again.
        outputs: "split_logits" or "split_states" -> name -> tensor, logits and hidden states that the engine cannot compute
            again.
        objective: name -> tensor, the `state()` of the forget loss.
        fingerprints: split -> digest of the tokenized set, under a key (see `utils.keyed_digests`).
        settings: name -> value in JSON, the arguments that a resumed run must share; empty in files of older versions.
    """

    log_probs: Mapping[str, Tensor] = field(default_factory=dict)
    identities: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    objective: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the file, with a digest of its content."""
        tensors = dict(self.log_probs)
        tensors |= {f"{split}_before": values for split, values in self.identities.items()}
        tensors |= {f"loss.{name}": value for name, value in self.objective.items()}
        tensors |= {
            f"{output}.{name}": value for output, values in self.outputs.items() for name, value in values.items()
        }
        metadata = {**self.fingerprints, _SETTINGS: json.dumps(self.settings, default=str)}
        metadata[_DIGEST] = _digest(tensors, metadata)
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
        digest, old = metadata.pop(_DIGEST, None), metadata.pop(_OLD_DIGEST, None)
        unknown = metadata.keys() - {*SPLITS, *_OLD_NAMES, _SETTINGS}  # the digest itself, under a damaged name
        altered = old not in (None, _digest(tensors)) if digest is None else digest != _digest(tensors, metadata)
        if altered or unknown:
            raise ValueError(f"{path} was altered or replaced: its digest differs. Resume from another checkpoint.")
        try:
            settings = json.loads(metadata.pop(_SETTINGS, "{}"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Resume from another checkpoint.") from error
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
        outputs: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            output, dot, rest = name.partition(".")
            if dot and output in _OUTPUTS:
                outputs.setdefault(output, {})[rest] = tensor
        return cls(
            log_probs={split: tensors[split] for split in SPLITS if split in tensors},
            identities={split: tensors[f"{split}_before"] for split in SPLITS if f"{split}_before" in tensors},
            outputs=outputs,
            objective={name.removeprefix("loss."): t for name, t in tensors.items() if name.startswith("loss.")},
            fingerprints={_renamed(name): text for name, text in metadata.items() if _renamed(name) in SPLITS},
            settings=settings,
        )

    def check_data(self, fingerprints: Mapping[str, str], folder: str, keys: Sequence[bytes] = ()) -> None:
        """Raise ValueError unless the sets of a run are those of the file.

        Args:
            fingerprints: of the run's sets, without a key.
            folder: of the checkpoint, for the error.
            keys: that the file's may be under; without the right one, a warning says that nothing was compared.
        """
        for split, recorded in self.fingerprints.items():
            same = is_of(recorded, fingerprints.get(split, ""), keys)
            if same is None:
                logger.warning(
                    f"Whether the {split} set is the one that the checkpoint in {folder} was trained on is not known: its "
                    f"digest is under another key. The key is in {KEY_VARIABLE}, or in the file {KEY_NAME} of the "
                    "run's output folder."
                )
            elif not same:
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


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 of the metadata, if any, and of the tensors' names, types, shapes and bytes."""
    sha = hashlib.sha256(b"" if metadata is None else json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
