"""Adapters in PEFT's own sparse format, Super-Tuning, for those who do not have this package."""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from wagle_trainer.adapters.adapter import CONFIG_NAME, KEY_PREFIX, WEIGHTS_NAME, SparseAdapter
from wagle_trainer.utils.atomic_files import write_atomically


def export_supertuning(
    adapter: SparseAdapter | str | os.PathLike[str], base: nn.Module, save_directory: str | os.PathLike[str]
) -> None:
    """Write an adapter as one of PEFT's Super-Tuning adapters (arXiv 2607.09287), which loads without this package.

    That format takes weights of `torch.nn.Linear` only, and the same share of each: train with
    `attribution_scope="tensor"` and `attribution_include` patterns that match linear layers. It holds differences, which
    PEFT adds to the base model: the weights agree to rounding; they are not bitwise identical.

    Args:
        adapter: object, folder or Hub id.
        base: its base model; the differences are to its values.
        save_directory: folder to write.

    Raises:
        ValueError: the adapter does not fit that format; says where.
        AdapterMismatchError: `base` is not its base model.
        ImportError: this PEFT does not know the format (0.21 does).
    """
    try:
        from peft import SupertuningConfig
    except ImportError as error:
        raise ImportError("This version of PEFT has no Super-Tuning: update to peft 0.21 or later.") from error

    if not isinstance(adapter, SparseAdapter):
        adapter = SparseAdapter.from_pretrained(adapter)
    adapter.check(base)
    modules: dict[str, Any] = dict(base.named_modules())
    names = {name.removesuffix(".weight"): name for name in adapter if name.endswith(".weight")}
    tied = _tied(base)
    for name in adapter:
        module = modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if not isinstance(module, nn.Linear) or name in tied:
            kind = "tied" if name in tied else "no weight of a linear layer"
            raise ValueError(
                f"PEFT's Super-Tuning takes untied weights of torch.nn.Linear only, and {name!r} is {kind}. Train with "
                "attribution_include patterns that match linear layers only, such as ['_proj']."
            )
    tensors: dict[str, Tensor] = {}
    for module_name, name in names.items():
        index = adapter[name].index
        before = modules[module_name].weight.detach().reshape(-1)[index.to(modules[module_name].weight.device)].cpu()
        tensors[f"{KEY_PREFIX}{module_name}.supertuning_indices"] = index.to(torch.int32).cpu()
        tensors[f"{KEY_PREFIX}{module_name}.supertuning_values"] = (
            adapter[name].values.cpu().double() - before.double()
        ).float()
    config = SupertuningConfig(
        target_modules="|".join(re.escape(module_name) for module_name in names),
        sparsity=_sparsity(adapter),
        task_type=adapter.info.task_type,
        base_model_name_or_path=adapter.info.base_model,
        inference_mode=True,
    )
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_NAME, save(tensors, metadata={"format": "pt"}))
    with TemporaryDirectory() as aside:
        config.save_pretrained(aside)
        write_atomically(folder / CONFIG_NAME, (Path(aside) / CONFIG_NAME).read_bytes())


def _sparsity(adapter: SparseAdapter) -> float:
    """The sparsity from which PEFT computes the number of values of every tensor, as int(numel * (1 - sparsity))."""
    low = max(len(sparse.values) / sparse.numel for sparse in adapter.values())
    high = min((len(sparse.values) + 1) / sparse.numel for sparse in adapter.values())
    sparsity = 1 - (low + high) / 2
    for name, sparse in adapter.items():
        if int(sparse.numel * (1 - max(sparsity, 0.0))) != len(sparse.values):
            raise ValueError(
                f"PEFT's Super-Tuning sets the same share of every tensor, and {name!r} has {len(sparse.values):,} values out "
                f"of {sparse.numel:,}, another share than others. Train with attribution_scope='tensor'."
            )
    return max(sparsity, 0.0)


def _tied(model: nn.Module) -> set[str]:
    """Names of the parameters that several modules hold."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}
