"""Reading of saved masks: sizes and formats are checked against the file before memory is taken."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wagle_trainer.masking import bits

FORMAT_VERSION = 1
WEIGHTS_NAME = "mask.safetensors"
CONFIG_NAME = "mask_config.json"
# Under this key an adapter's file has the positions of one parameter's selected weights: packed bits, or flat indices.
POSITIONS_KEY = "base_model.model.{}.positions"
MOST_WEIGHTS = 2**42  # more than any model has; a file of positions alone does not bound them


class MaskMismatchError(ValueError):
    """A mask does not fit the model, the other mask or the file that it is used with."""


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 over all of a mask's configuration but this digest."""
    content = json.loads(json.dumps({key: value for key, value in config.items() if key != "config_digest"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()  # sorted as they are read again


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Read `mask_config.json`.

    Returns:
        the configuration, and the shape of each parameter.

    Raises:
        ValueError: not a configuration of a mask, or of another format version.
        MaskMismatchError: it was edited, as its digest tells; old files have none.
    """
    try:
        config = json.loads(file.read_bytes())
        version, shapes = config["format_version"], {n: _shape(shape) for n, shape in config["shapes"].items()}
        if not isinstance(config["digest"], str):
            raise TypeError(f"digest is {config['digest']!r}")
        bits_in = config.get("bits_in")
        if bits_in is not None and Path(bits_in).name != bits_in:
            raise ValueError(f"{bits_in!r} is not in the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not a readable mask configuration: {str(error)[:200] or error!r}.") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has mask format version {version!r}; this wagle_trainer reads {FORMAT_VERSION}. Update "
            "wagle-trainer, or compute the mask again."
        )
    if sum(map(math.prod, shapes.values())) > MOST_WEIGHTS:
        raise ValueError(
            f"{file} is not a readable mask configuration: no model has as many weights as its shapes say."
        )
    if "config_digest" in config and config["config_digest"] != config_digest(config):
        raise MaskMismatchError(
            f"The digest in {file} does not belong to its content: the file was altered. Fetch it again or compute the "
            "mask again."
        )
    return config, shapes


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise TypeError(f"{str(value)[:50]!r} is no shape")
    return tuple(value)


def read_bits(
    file: Path, config_file: Path, shapes: Mapping[str, tuple[int, ...]], *, of_adapter: bool
) -> dict[str, Tensor]:
    """Read the packed bits of all parameters of a mask.

    Args:
        file: `mask.safetensors`, or the file of an adapter that has the same positions.
        config_file: for errors.
        of_adapter: which of the two `file` is.

    Returns:
        name -> uint8 (ceil(numel / 8),).

    Raises:
        ValueError: the file is truncated, or no safetensors file.
        MaskMismatchError: a tensor is missing, or of another format or size than its shape needs.
    """
    try:
        with safe_open(file, "pt") as tensors:
            found = set(tensors.keys())
            if not of_adapter and found != shapes.keys():
                raise MaskMismatchError(f"{file} and {config_file} name different parameters: one was replaced.")
            read = {}
            for name, shape in shapes.items():
                key = POSITIONS_KEY.format(name) if of_adapter else name
                if key in found:
                    _check_layout(tensors.get_slice(key), name, shape, file, any_index=of_adapter)
                    read[name] = tensors.get_tensor(key)
    except (SafetensorError, OSError, IndexError) as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {error}.") from error
    packed = {}
    for name, shape in shapes.items():
        values, numel = read.get(name, torch.empty(0, dtype=torch.int32)), math.prod(shape)
        packed[name] = (
            values if values.dtype == torch.uint8 and name in read else _from_index(values, numel, name, file)
        )
        if numel % 8 and int(packed[name][-1]) >> (numel % 8):
            raise MaskMismatchError(
                f"{file} selects weights of {name!r} behind its last one: a file was altered or replaced."
            )
    return packed


def _check_layout(part: Any, name: str, shape: tuple[int, ...], file: Path, *, any_index: bool) -> None:
    dtype, found = part.get_dtype(), tuple(part.get_shape())
    numel = math.prod(shape)
    if dtype == "U8" and found == (bits.packed_size(numel),):
        return
    if any_index and dtype in ("I32", "I64") and len(found) == 1 and found[0] <= numel:
        return
    raise MaskMismatchError(
        f"{file} has a tensor of format {dtype} and shape {found} for {name!r}, but packed bits of shape {shape} are of "
        f"format U8 and shape {(bits.packed_size(numel),)}: a file was altered or replaced."
    )


def _from_index(index: Tensor, numel: int, name: str, file: Path) -> Tensor:
    inside = not len(index) or (int(index[0]) >= 0 and int(index[-1]) < numel)
    if not inside or not bool((index[1:] > index[:-1]).all()):
        raise MaskMismatchError(f"{file} has positions of {name!r} outside the tensor, or not in ascending order.")
    return bits.from_index(index, numel)
