"""Sharded tensors (FSDP2's `DTensor`s): local parts, and how to gather full tensors.

Everywhere else a tensor is either *full* (the parameter's shape) or *local* (the rows that lie on this process; on an
unsharded model the full tensor).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

T = TypeVar("T")

# What FSDP1, activation checkpointing and torch.compile put into the names of parameters.
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by their names in the unwrapped model, a tied one once; sharded under FSDP2."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass without a backward pass leaves some of them gathered
    return {unwrapped_name(name): parameter for name, parameter in model.named_parameters()}


def unwrapped_name(name: str) -> str:
    """A parameter's name in the unwrapped model."""
    return _WRAPPERS.sub("", name)


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Shape of the full parameter; ZeRO-3 leaves an empty tensor in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether the parameters are sharded by FSDP2.

    Raises:
        ValueError: they are sharded in another way than by rows over all processes, or only some of them are.
    """
    parameters = list(parameters)
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    layouts = {(parameter.device_mesh, parameter.placements) for parameter in sharded}
    if len(layouts) > 1 or any(
        mesh.size() != dist.get_world_size() or placements != (Shard(0),) for mesh, placements in layouts
    ):
        raise ValueError(
            "Weight masks support parameters that FSDP2 shards by rows over all processes; these are laid out as "
            + " and ".join(sorted(f"{placements} on {mesh}" for mesh, placements in layouts))
            + ". Tensor parallelism and hybrid sharding are not supported."
        )
    if sharded and len(sharded) < len(parameters):
        raise ValueError(
            f"{len(parameters) - len(sharded)} of {len(parameters)} parameters are not sharded by FSDP2 (ignored "
            "modules?), the others are: weight masks need all of them sharded, or none."
        )
    return bool(sharded)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a parameter or gradient on this process; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def device_of(parameter: Tensor) -> torch.device:
    """The device that computes with the parameter; offloaded parameters lie elsewhere."""
    return torch.device(parameter.device_mesh.device_type) if isinstance(parameter, DTensor) else parameter.device


def shard(full: Tensor, parameter: Tensor) -> Tensor:
    """The rows of `full` that belong on this process, laid out as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return full
    mesh, placements = parameter.device_mesh, parameter.placements
    # Without a source rank every process takes its part of what it has: nothing is sent.
    part = distribute_tensor(full.to(mesh.device_type), mesh, placements, src_data_rank=None).to_local()
    return part.to(local_part(parameter).device)  # with parameter offloading that is the CPU


def rows_before(parameter: Tensor) -> int:
    """Number of rows of a parameter that lie on earlier processes; none of one that is not sharded."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0]


def gather(part: Tensor, parameter: Tensor) -> Tensor:
    """The full tensor on every process, from local parts laid out as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return part
    shape, stride = parameter.shape, parameter.stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    part = part.to(mesh.device_type)
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride).full_tensor()


def full_norm(norm: T) -> T | Tensor:
    """The norm over all processes, for the logs.

    That of sharded gradients is a `DTensor` not yet summed up. With torch 2.9 its `item()` is the norm on this process
    alone, with 2.13 no longer; `test_fsdp2` compares what is logged with one process.
    """
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def synchronised(batches: Iterable[T], device: torch.device) -> Iterator[T | None]:
    """Yield the batches, then None until the slowest process has no batch left.

    Where weights are sharded, every process has to run the same number of forward passes.
    """
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        any_left = torch.tensor(batch is not None, dtype=torch.int32, device=device)
        dist.all_reduce(any_left, op=dist.ReduceOp.MAX)
        if not bool(any_left):
            return
        yield batch


def empty_batch(device: torch.device) -> dict[str, Tensor]:
    """The smallest batch for a process that has none left: one example without a target token."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    return {"input_ids": ids, "labels": torch.full_like(ids, -100)}
