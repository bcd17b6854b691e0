"""`ScoringView`: a model that FSDP1 or ZeRO-3 cuts up, seen as one whose parameters are sharded by rows.

Scores need weights and gradients tensor by tensor, and both engines hold slices of whatever was next to each other. The view
copies each process's rows of every weight (1 / number of processes of the model), runs the engine forward and backward, and
hands each full gradient on as the rows on this process, as FSDP2 would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from wagle_trainer.engines.sharding import local_part, named_parameters, shard, unwrapped_name


class ScoringView(nn.Module, ABC):
    """The parameters of a model as `DTensor`s sharded by rows; forward and backward are the engine's.

    Args:
        wrapped: the engine's wrapper around the model.
        names: of the parameters in the unwrapped model, in its order.

    Attributes:
        shows_inputs: whether hooks on the modules see weights of full shapes.
    """

    shows_inputs = False

    def __init__(self, wrapped: nn.Module, names: list[str]):
        super().__init__()
        self.module = wrapped
        first = next(wrapped.parameters())
        self._mesh: DeviceMesh = init_device_mesh(first.device.type, (dist.get_world_size(),))
        found = {name: self._leaf(full) for name, full in self._full_weights()}
        self._leaves = {name: found[name] for name in names if name in found}

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return getattr(self.module, "config", None)

    def _leaf(self, full: Tensor) -> nn.Parameter:
        if full.dim() == 0:
            raise ValueError(
                "A parameter without dimensions cannot be sharded by rows: freeze it, or use data parallelism."
            )
        rows = distribute_tensor(full.detach(), self._mesh, [Shard(0)], src_data_rank=None)
        return nn.Parameter(rows.clone())

    @abstractmethod
    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and full weight of every trainable parameter; each is let go before the next one."""

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The rows on this process by name, as `DTensor`s."""
        return iter(self._leaves.items())

    def forward(self, **inputs: Any) -> Any:
        """The engine's forward pass."""
        return self.module(**inputs)

    @abstractmethod
    def run_backward(self, loss: Tensor) -> None:
        """Run the engine's backward pass, and hand on the gradients averaged over processes."""

    def _deliver(self, name: str, full: Tensor) -> None:
        """Give a parameter the rows of its full gradient, and run the hooks that wait for it."""
        leaf = self._leaves.get(name)
        if leaf is None:
            return
        rows = shard(full.to(leaf.dtype), leaf).clone()
        if leaf.grad is None:
            layout = {"shape": leaf.shape, "stride": leaf.stride()}
            leaf.grad = DTensor.from_local(rows, self._mesh, [Shard(0)], run_check=False, **layout)  # type: ignore[arg-type]
        else:
            local_part(leaf.grad).add_(rows)
        for hook in (getattr(leaf, "_post_accumulate_grad_hooks", None) or {}).values():
            hook(leaf)


class FSDP1View(ScoringView):
    """Gathers the weights, and the gradients after each backward pass, one unit of FSDP1 at a time."""

    def _units(self, **options: Any) -> Iterator[dict[str, nn.Parameter]]:
        """The parameters of each unit by name, gathered while it is looked at."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        paths = {module: path for path, module in self.module.named_modules()}
        for unit in FullyShardedDataParallel.fsdp_modules(self.module):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False, **options):
                found: dict[Tensor, str] = {}
                pending: list[nn.Module] = [unit.module]
                while pending:
                    module = pending.pop(0)
                    for name, parameter in module.named_parameters(recurse=False):
                        if parameter.requires_grad:
                            found.setdefault(parameter, unwrapped_name(f"{paths[module]}.{name}".lstrip(".")))
                    pending += [
                        child for child in module.children() if not isinstance(child, FullyShardedDataParallel)
                    ]
                yield {name: parameter for parameter, name in found.items()}  # type: ignore[misc]

    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        for unit in self._units():
            yield from unit.items()

    def run_backward(self, loss: Tensor) -> None:
        """See `ScoringView.run_backward`."""
        loss.backward()
        with torch.no_grad():
            for unit in self._units(with_grads=True):
                for name, parameter in unit.items():
                    if parameter.grad is not None:
                        self._deliver(name, parameter.grad)
        self.module.zero_grad(set_to_none=True)


class Zero3View(ScoringView):
    """Gathers the weights one at a time, and averages each gradient as it arrives; ZeRO's buffers get zeros."""

    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed import zero

        for name, parameter in named_parameters(self.module.module).items():  # type: ignore[arg-type]
            if parameter.requires_grad:
                with zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext():
                    yield name, parameter.detach()

    def run_backward(self, loss: Tensor) -> None:
        """See `ScoringView.run_backward`."""
        engine: Any = self.module
        scale = float(getattr(engine.optimizer, "loss_scale", 1.0))
        handles = [
            parameter.register_hook(self._receive(name, scale))
            for name, parameter in named_parameters(engine.module).items()
            if name in self._leaves
        ]
        try:
            engine.backward(loss, scale_wrt_gas=False)
        finally:
            for handle in handles:
                handle.remove()

    def _receive(self, name: str, scale: float) -> Any:
        @torch.no_grad()
        def receive(gradient: Tensor) -> Tensor:
            full = gradient.float().div_(scale * dist.get_world_size())
            dist.all_reduce(full)
            self._deliver(name, full)
            return torch.zeros_like(gradient)

        return receive
