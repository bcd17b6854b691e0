"""Whether a model is the base model that an adapter was made for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wagle_trainer.adapters.sparse import tensor_digest

IGNORE = (
    "Load the base model that it was trained on, in the same dtype. To go on regardless, pass ignore_base_mismatch=True: "
    "then nobody knows what the model remembers."
)


class AdapterMismatchError(ValueError):
    """An adapter does not fit the base model, another adapter, or the file that it is used with."""


def check_layout(
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    base_model: str | None,
    *,
    any_dtype: bool = False,
) -> None:
    """Raise AdapterMismatchError unless the parameters have the names, shapes and dtypes that the adapter touches."""
    found = []
    for name, (shape, dtype) in tensors.items():
        if name not in parameters:
            found.append(f"{name!r} is not in the model")
        elif tuple(parameters[name].shape) != shape:
            found.append(f"{name!r} has shape {shape} in the adapter and {tuple(parameters[name].shape)} in the model")
        elif parameters[name].dtype != dtype and not any_dtype:
            found.append(f"{name!r} is {dtype} in the adapter and {parameters[name].dtype} in the model")
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise AdapterMismatchError(
            f"The adapter was made for another base model ({base_model!r}): {'; '.join(found[:3])}{more}. "
            + ("" if any_dtype else IGNORE)
        )


def differing(parameters: Mapping[str, Tensor], digests: Mapping[str, str]) -> list[str]:
    """The names of the parameters whose content is not that of the digest."""
    return [name for name, digest in digests.items() if tensor_digest(parameters[name]) != digest]


def raise_for_base(different: list[str], base_model: str | None) -> None:
    """Raise AdapterMismatchError if tensors of the base model differ."""
    if different:
        raise AdapterMismatchError(
            f"The adapter was made for another base model ({base_model!r}): {len(different)} of the tensors that it "
            f"touches differ, first {different[0]!r}. {IGNORE}"
        )
