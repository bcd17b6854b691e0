"""Making adapters from two checkpoints (`diff`), putting them into a model (`merge`), checking them (`verify`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wagle_trainer.adapters.adapter import (
    CONFIG_NAME,
    AdapterInfo,
    AdapterMismatchError,
    SparseAdapter,
)
from wagle_trainer.adapters.sparse import SparseValues, put, tensor_digest
from wagle_trainer.engines.sharding import named_parameters
from wagle_trainer.masking.bits import as_integers
from wagle_trainer.masking.mask import differences

Model = TypeVar("Model", bound=nn.Module)


def diff(base: nn.Module | str | os.PathLike[str], tuned: nn.Module | str | os.PathLike[str]) -> SparseAdapter:
    """The adapter that turns one checkpoint into another, bitwise identical.

    Weights are compared as integers: 0.0 and -0.0 differ, equal NaNs do not.

    Args:
        base, tuned: models of the same architecture and dtype, or folders or Hub ids of causal language models.

    Raises:
        AdapterMismatchError: parameters differ in names, shapes or dtypes.
        ValueError: the checkpoints do not differ.
    """
    base, tuned = _model(base), _model(tuned)
    before, after = named_parameters(base), named_parameters(tuned)
    shapes = [{name: tuple(p.shape) for name, p in parameters.items()} for parameters in (before, after)]
    if shapes[0] != shapes[1]:
        raise AdapterMismatchError(
            "The two checkpoints are not of the same model: " + differences(shapes[0], shapes[1], "tuned one", "base")
        )
    for name in before:
        if before[name].dtype != after[name].dtype:
            raise AdapterMismatchError(
                f"The two checkpoints differ in dtype: {name!r} is {before[name].dtype} in the base and "
                f"{after[name].dtype} in the tuned one. Load both in the same dtype."
            )
    values = {}
    for name, parameter in before.items():
        old, new = (as_integers(p.detach().reshape(-1)).cpu() for p in (parameter, after[name]))
        index = (old != new).nonzero().view(-1)
        if len(index):
            changed = after[name].detach().reshape(-1).cpu()
            values[name] = SparseValues.from_index(
                tuple(parameter.shape), index, as_integers(changed)[index].view(parameter.dtype)
            )
    if not values:
        raise ValueError("The two checkpoints do not differ: there is nothing to put into an adapter.")
    return SparseAdapter(values, {name: tensor_digest(before[name]) for name in values}, AdapterInfo.of(base))


@torch.no_grad()
def merge(
    base: Model, adapter: SparseAdapter | str | os.PathLike[str], *, ignore_base_mismatch: bool = False
) -> Model:
    """Write an adapter's values into its base model, in place; return the model, now the trained one.

    For a change that can be taken back, load the adapter with `PeftModel.from_pretrained` instead.

    Args:
        base: the base model.
        adapter: object, folder or Hub id.
        ignore_base_mismatch: go on if the base model's values or dtypes differ from those that the adapter was made for.

    Raises:
        AdapterMismatchError: see `SparseAdapter.check`; nothing is written then.
    """
    if not isinstance(adapter, SparseAdapter):
        adapter = SparseAdapter.from_pretrained(adapter)
    adapter.check(base, ignore_base_mismatch=ignore_base_mismatch)
    write(adapter, base)
    return base


@torch.no_grad()
def write(adapter: SparseAdapter, model: nn.Module) -> None:
    """Write an adapter's values into a model that they are known to fit."""
    parameters: Mapping[str, Tensor] = named_parameters(model)
    for name, sparse in adapter.items():
        parameter = parameters[name]
        put(parameter, sparse.positions.to(parameter.device), sparse.values.to(parameter.device, parameter.dtype))


def verify(
    adapter_path: str | os.PathLike[str], base: nn.Module | str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Whether an adapter is intact, and belongs to a base model.

    Args:
        adapter_path: folder or Hub id.
        base: the base model to check against; object, folder or Hub id.

    Returns:
        "valid": bool; "problems": list of sentences, empty if valid; "base_checked": bool; and, if the adapter could be
        read, what `SparseAdapter.describe` says.

    Raises:
        FileNotFoundError: there is no adapter.
    """
    report: dict[str, Any] = {"valid": False, "problems": [], "base_checked": base is not None}
    try:
        adapter = SparseAdapter.from_pretrained(adapter_path)
        report |= adapter.describe()
        if base is not None:
            adapter.check(_model(base))
    except ValueError as error:
        report["problems"].append(str(error))
    report["valid"] = not report["problems"]
    return report


def _model(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    """A model as it is, or one from a folder or from the Hub in the dtype that it was saved in."""
    if isinstance(model, nn.Module):
        return model
    if (Path(model) / CONFIG_NAME).is_file():
        raise ValueError(f"{os.fspath(model)} holds an adapter, not a model: merge it into its base model first.")
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype="auto")
