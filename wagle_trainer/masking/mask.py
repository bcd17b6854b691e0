"""`WeightMask`: which weights of a model may change."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from wagle_trainer.engines.sharding import named_parameters, shape_of
from wagle_trainer.masking import bits
from wagle_trainer.masking.mask_files import (
    CONFIG_NAME,
    FORMAT_VERSION,
    WEIGHTS_NAME,
    MaskMismatchError,
    config_digest,
    read_bits,
    read_config,
)
from wagle_trainer.masking.mask_info import MaskInfo
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.hub import Shareable, find_file

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


class WeightMask(Shareable, Mapping[str, Tensor]):
    """A mapping from parameter name to a bool tensor of the parameter's shape: True where the weight may change.

    Kept bit-packed, in memory as on disk (an eighth of a byte per weight); `mask[name]` unpacks one tensor. Parameters
    that are not in the mask are frozen as a whole.

    Example:
        >>> mask = WeightMask.from_dict({"weight": torch.tensor([[True, False], [False, False]])})
        >>> mask.density, mask.num_selected, (~mask).num_selected
        (0.25, 1, 3)
    """

    commit_message: ClassVar[str] = "Upload weight mask"

    def __init__(
        self, packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], info: MaskInfo | None = None
    ):
        """Wrap already packed bits (see `masking.bits`); `from_dict` takes bool tensors.

        Raises:
            MaskMismatchError: a tensor's packed size does not belong to its shape.
        """
        self._packed = {name: tensor.cpu() for name, tensor in packed.items()}
        self._shapes = {name: tuple(shapes[name]) for name in self._packed}
        self.info = info or MaskInfo()
        for name, shape in self._shapes.items():
            if self._packed[name].numel() != bits.packed_size(math.prod(shape)):
                raise MaskMismatchError(
                    f"The mask of {name!r} holds {self._packed[name].numel()} bytes, but shape {shape} needs "
                    f"{bits.packed_size(math.prod(shape))}."
                )

    @classmethod
    def from_dict(cls, masks: Mapping[str, Tensor], info: MaskInfo | None = None) -> WeightMask:
        """Make a mask from bool tensors.

        Args:
            masks: parameter name -> bool tensor of the parameter's shape.
            info: where the mask comes from.

        Raises:
            TypeError: a tensor is not of dtype bool.
        """
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise TypeError(f"The mask of {name!r} must be a bool tensor, got {mask.dtype}.")
        return cls(
            {name: bits.pack(mask.cpu()) for name, mask in masks.items()},
            {name: tuple(mask.shape) for name, mask in masks.items()},
            info,
        )

    def __getitem__(self, name: str) -> Tensor:
        return bits.unpack(self.packed(name), self.shape(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, name: object) -> bool:  # Mapping's own would unpack the tensor
        return name in self._packed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightMask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"WeightMask({len(self)} tensors, {self.num_selected:,} of {self.num_weights:,} weights selected, "
            f"density {self.density:.4g}, score {self.info.score})"
        )

    def packed(self, name: str) -> Tensor:
        """The packed bits of one parameter, uint8 (ceil(numel / 8),); not a copy.

        Args:
            name: of the parameter.

        Raises:
            KeyError: the mask has no such parameter.
        """
        if name not in self._packed:
            raise KeyError(f"The mask has no parameter {name!r}; it has {_some(list(self._packed))}.")
        return self._packed[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one parameter.

        Args:
            name: of the parameter.
        """
        return self._shapes[name]

    def num_selected_in(self, name: str) -> int:
        """Selected weights of one parameter.

        Args:
            name: of the parameter.
        """
        return bits.count(self.packed(name))

    @property
    def num_weights(self) -> int:
        """Number of weights that were scored."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @cached_property  # a trainer logs the density again and again: 0.5 s to count 7 B weights
    def num_selected(self) -> int:
        """Number of weights that may change."""
        return sum(bits.count(packed) for packed in self._packed.values())

    @property
    def density(self) -> float:
        """Selected share of the scored weights."""
        return self.num_selected / max(self.num_weights, 1)

    @property
    def nbytes(self) -> int:
        """Bytes that the packed mask takes in memory."""
        return sum(packed.nbytes for packed in self._packed.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits; does not depend on the order of the parameters."""
        sha = hashlib.sha256()
        for name in sorted(self._packed):
            sha.update(f"{name}:{self._shapes[name]}:".encode())
            sha.update(self._packed[name].contiguous().numpy().data)
        return sha.hexdigest()

    def __and__(self, other: WeightMask) -> WeightMask:
        return self._combine(other, torch.bitwise_and)

    def __or__(self, other: WeightMask) -> WeightMask:
        return self._combine(other, torch.bitwise_or)

    def __sub__(self, other: WeightMask) -> WeightMask:
        return self & ~other

    def __invert__(self) -> WeightMask:
        return WeightMask.from_dict({name: ~self[name] for name in self})

    def overlap(self, other: WeightMask) -> float:
        """Jaccard index of the two selections: |A and B| / |A or B|; 1.0 if both are empty.

        Args:
            other: a mask of the same parameters.
        """
        union = (self | other).num_selected
        return (self & other).num_selected / union if union else 1.0

    def _combine(self, other: WeightMask, operation: Any) -> WeightMask:
        if self._shapes != other._shapes:
            raise MaskMismatchError(
                "The two masks are not of the same model: " + differences(self._shapes, other._shapes, "other mask")
            )
        return WeightMask({name: operation(self._packed[name], other._packed[name]) for name in self}, self._shapes)

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Selected and total weights by tensor, by module type (such as `q_proj`) and by layer.

        Returns:
            {"tensor" | "module" | "layer": {key: {"selected": int, "total": int, "density": float}}}
        """
        groups: dict[str, dict[str, dict[str, float]]] = {"tensor": {}, "module": {}, "layer": {}}
        for name in self:
            parts = name.split(".")
            layer = next((part for part in parts if part.isdigit()), "outside layers")
            module = parts[-2] if len(parts) > 1 else name
            selected, total = self.num_selected_in(name), math.prod(self._shapes[name])
            for group, key in (("tensor", name), ("module", module), ("layer", layer)):
                entry = groups[group].setdefault(key, {"selected": 0, "total": 0, "density": 0.0})
                entry["selected"] += selected
                entry["total"] += total
                entry["density"] = entry["selected"] / max(entry["total"], 1)
        return groups

    def describe(self) -> dict[str, Any]:
        """How the mask came about, how much it selects, and its digest."""
        counts = {"density": self.density, "num_selected": self.num_selected, "num_weights": self.num_weights}
        return {**asdict(self.info), **counts, "digest": self.digest}

    def check(self, model: nn.Module) -> None:
        """Raise unless every parameter of the mask is in the model with the same shape.

        Args:
            model: that the mask is for.

        Raises:
            MaskMismatchError: names the first differences.
        """
        shapes = {name: shape_of(parameter) for name, parameter in named_parameters(model).items()}
        expected = {name: shapes[name] for name in shapes if name in self}
        if expected != self._shapes:
            raise MaskMismatchError(
                f"The mask (base model {self.info.base_model!r}) does not belong to this model: "
                + differences(self._shapes, expected, "model")
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, bits_in: str | None = None) -> None:
        """Write `mask.safetensors` (bit-packed) and `mask_config.json` into `save_directory`, each at once.

        Args:
            save_directory: the folder; made if missing.
            bits_in: name of an adapter's file in the folder that has the same positions; then they are not written twice.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "format_version": FORMAT_VERSION,
            **self.describe(),
            "shapes": {name: list(shape) for name, shape in self._shapes.items()},
        }
        if bits_in is None:
            write_atomically(folder / WEIGHTS_NAME, save(self._packed))
        else:
            config["bits_in"] = bits_in
        config["config_digest"] = config_digest(config)
        write_atomically(folder / CONFIG_NAME, json.dumps(config, indent=2).encode())

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | os.PathLike[str], *, model: nn.Module | None = None, revision: str | None = None
    ) -> WeightMask:
        """Read a mask from a folder or from the Hub, and check it.

        Args:
            path_or_repo_id: a folder that `save_pretrained` wrote, or a model repository on the Hub.
            model: if given, the mask is checked against it (see `check`).
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is truncated or of an unknown format version.
            MaskMismatchError: a digest or a size does not belong to the content (a file was altered), or the model
                differs.
        """
        config_file = find_file(path_or_repo_id, CONFIG_NAME, revision, "mask")
        config, shapes = read_config(config_file)
        bits_in = config.get("bits_in")
        weights = find_file(path_or_repo_id, bits_in or WEIGHTS_NAME, revision, "mask")
        packed = read_bits(weights, config_file, shapes, of_adapter=bits_in is not None)
        info = MaskInfo(**{key: config.get(key) for key in MaskInfo.__dataclass_fields__})
        mask, digest = cls(packed, shapes, info), config["digest"]
        if mask.digest != digest:
            raise MaskMismatchError(
                f"The digest in {config_file} is {digest[:12]}..., that of the bits in {weights} is "
                f"{mask.digest[:12]}...: a file was altered or replaced. Fetch it again or compute the mask again."
            )
        if model is not None:
            mask.check(model)
        return mask

    def card(self, repo_id: str, evaluation: Mapping[str, Mapping[str, Any]] | None = None) -> ModelCard:
        """See `Shareable.card`."""
        from wagle_trainer.masking.mask_card import mask_card

        return mask_card(self.describe(), repo_id, evaluation)


def differences(
    first: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]], what: str, of: str = "mask"
) -> str:
    """The first few differences between two sets of shapes, as a sentence; `of` and `what` name the two."""
    missing = [f"{name!r} is not in the {what}" for name in first if name not in other]
    shapes = [
        f"{name!r} has shape {first[name]} in the {of} and {other[name]} in the {what}"
        for name in first
        if name in other and first[name] != other[name]
    ]
    extra = [f"{name!r} is only in the {what}" for name in other if name not in first]
    found = missing + shapes + extra
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more + "."


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
