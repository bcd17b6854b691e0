"""Masked updates on engines that flatten parameters: FSDP1 and DeepSpeed's ZeRO.

Their optimizers hold slices of long vectors that only the engine can assign to parameters. So the mask travels like the
weights: the engine's public functions write it into them as zeros and ones, it is read from the slices, and the weights
are restored. Only the place of ZeRO-3's slices has to be known.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from wagle_trainer.engines.sharding import named_parameters
from wagle_trainer.masking import bits
from wagle_trainer.masking.mask import MaskMismatchError, WeightMask
from wagle_trainer.masking.masked_updates import MaskedUpdates


class FSDP1MaskedUpdates(MaskedUpdates):
    """For FSDP1 with `use_orig_params`: the optimizer holds this process's slice of each parameter.

    No hook sees the gradients: `mask_gradients` is to be called after each backward pass.
    """

    def _attach(self, model: nn.Module, optimizer: Any) -> None:
        parameters = named_parameters(model)
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        slices = {name: parameter for name, parameter in parameters.items() if parameter in held}
        if not slices:
            raise ValueError(
                "Weight masks need FSDP1 to keep the parameters' names: set fsdp_use_orig_params to true."
            )
        for name, parameter in slices.items():
            self._names[parameter] = name
            # So it stays for what is not in the mask.
            self._packed[parameter] = bits.pack(torch.zeros_like(parameter, dtype=torch.bool))
        found: set[str] = set()
        for unit in FullyShardedDataParallel.fsdp_modules(model):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False):
                whole = [
                    name for name in slices if name in self.mask and _is_whole(slices[name], self.mask.shape(name))
                ]
                values = {name: slices[name].clone() for name in whole}
                for name in whole:
                    slices[name].copy_(self.mask[name])
            for name in whole:
                self._packed[slices[name]] = bits.pack(slices[name] != 0)
            # Back the same way: the outermost unit may still hold its gathered weights from an evaluation.
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False):
                for name in whole:
                    slices[name].copy_(values[name])
            found.update(whole)
        if missing := [name for name in self.mask if name not in found]:
            raise MaskMismatchError(
                f"The mask does not belong to this model: {missing[0]!r} has another shape there, or does not exist "
                f"({len(missing)} of {len(self.mask)} tensors)."
            )

    def _sharded(self) -> bool:
        return True

    def mask_gradients(self) -> None:
        """Zero the gradients of unselected weights, before they are clipped and used."""
        for parameter in self._packed:
            if parameter.grad is not None:
                self._mask_gradient(parameter)


class ZeroMaskedUpdates(MaskedUpdates):
    """For DeepSpeed's ZeRO stages 1 to 3: the optimizer holds float32 slices of all parameters of a group in a row."""

    def _sharded(self) -> bool:
        return True

    def _attach(self, model: nn.Module, optimizer: Any) -> None:
        self.mask.check(model)
        zero = zero_optimizer(optimizer)
        parameters = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
        self._parameters, self._left_out = parameters, frozenset[str]()
        self._stage3 = any(hasattr(parameter, "ds_id") for parameter in parameters.values())
        # Stage 3 shows a slice to its optimizer only while it steps.
        self._slices = (
            list(zero.fp32_partitioned_groups_flat)
            if self._stage3
            else [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
        )
        self._names |= {tensor: f"the parameters of group {index}" for index, tensor in enumerate(self._slices)}
        self._read_bits()
        for name, parameter in parameters.items():
            if name not in self.mask or self.mask.num_selected_in(name) < math.prod(self.mask.shape(name)):
                # Not a hook on the accumulated gradient: ZeRO's own, which reduces it, comes before ours.
                self._handles.append(parameter.register_hook(_Keep(self.mask, name, parameter.device)))

    def _read_bits(self) -> None:
        """Find out which weights of the slices are selected, and not left out."""
        with _borrowed(self._slices):
            for name, parameter in self._parameters.items():
                if name in self.mask and name not in self._left_out:
                    _write(parameter, self.mask[name].float(), self._stage3)
            for tensor in self._slices:
                self._packed[tensor] = bits.pack(tensor != 0)

    @torch.no_grad()
    def leave_out(self, names: Collection[str]) -> None:
        """See `MaskedUpdates.leave_out`; here they have zeros for gradients, and would decay."""
        if self._left_out != names:
            self._left_out = frozenset(names)
            self._read_bits()


def _is_whole(parameter: Tensor, shape: tuple[int, ...]) -> bool:
    return tuple(parameter.shape) == shape


class _Keep:
    """Zeroes the unselected entries of one parameter's whole gradient."""

    def __init__(self, mask: WeightMask, name: str, device: torch.device):
        self.packed = mask.packed(name).to(device) if name in mask else None

    def __call__(self, grad: Tensor) -> Tensor:
        if self.packed is None:
            return torch.zeros_like(grad)
        return grad.masked_fill(~bits.unpack(self.packed, grad.shape), 0)


def zero_optimizer(optimizer: Any) -> Any:
    """DeepSpeed's ZeRO optimizer among the wrappers of `optimizer`, or None."""
    while optimizer is not None and not type(optimizer).__name__.startswith("DeepSpeedZeroOptimizer"):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


@contextmanager
def _borrowed(tensors: list[Any]) -> Iterator[None]:
    """Put zeros in place of the tensors' values, and restore these at the end, bitwise identical."""
    values = [tensor.detach().clone() for tensor in tensors]
    for tensor in tensors:
        tensor.detach().zero_()
    try:
        yield
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.detach().copy_(value)


def _write(parameter: nn.Parameter, value: Tensor, stage3: bool) -> None:
    """Write a whole value into the float32 slices of a parameter, by DeepSpeed's public functions."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if not stage3:
        safe_set_full_fp32_param(parameter, value)
        return
    # The function for whole values fails if the parameter does not divide by the number of processes.
    size = -(-value.numel() // dist.get_world_size())
    start = size * dist.get_rank()
    part = value.flatten()[start : start + size]
    safe_set_local_fp32_param(parameter, F.pad(part, (0, size - part.numel())))
