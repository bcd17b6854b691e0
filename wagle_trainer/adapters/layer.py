"""`WagleLayer`: a module of the base model with the adapters' values for its own parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from wagle_trainer.adapters.composition import check_overlap, shared_values
from wagle_trainer.adapters.sparse import SparseValues, put, swap

# `functional_call` puts tensors into the base layer and takes them out again: two threads that did so at once, as in a
# server, could leave one's tensors there for good. Reentrant, since touched modules can hold each other.
_ONE_THREAD = threading.RLock()


class Change(nn.Module):
    """One adapter's values for one parameter; while merged, the values that it has displaced.

    Tied parameters have one, in several layers. The buffers follow the model to other devices and dtypes; they are not
    in its state dict, since adapters are saved by themselves.
    """

    positions: Tensor
    values: Tensor

    def __init__(self, sparse: SparseValues):
        super().__init__()
        self.shape = sparse.shape
        self.register_buffer("positions", sparse.positions, persistent=False)
        self.register_buffer("values", sparse.values, persistent=False)

    @property
    def sparse(self) -> SparseValues:
        """Positions and values; not a copy."""
        return SparseValues(self.shape, self.positions, self.values)


class WagleLayer(nn.Module, BaseTunerLayer):
    """Runs a module with the values of the active adapters in place of the base model's.

    Works for any module: the parameters that adapters touch are put together for one call of the module at a time and
    dropped after it, also where a backward pass is to follow, which puts them together again. Whoever reads a parameter
    of the layer, such as a fused language model head, gets it with the adapters' values, too.
    """

    adapter_layer_names: tuple[str, ...] = ("wagle_changes",)
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.wagle_changes = nn.ModuleDict()  # adapter -> module with a `Change` by parameter
        self.wagle_shared = nn.Module()  # `Change` by parameter: sums where several active adapters overlap
        self.wagle_names: dict[str, str] = {}  # parameter -> its name in the base model
        self.wagle_tied: set[str] = set()  # parameters that another layer holds, too, and merges
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base_layer", "_own"):  # not set yet, as in a copy under way
                raise
            return self.effective(name) if name in self._own else getattr(self.base_layer, name)

    @property
    def _own(self) -> dict[str, Any]:
        """The base layer's own parameters, as the base model has them."""
        return self.base_layer._parameters

    @property
    def weight(self) -> Any:
        """As the layer uses it now."""
        return self.effective("weight") if "weight" in self._own else self.base_layer.weight

    @property
    def bias(self) -> Any:
        """As the layer uses it now."""
        return self.effective("bias") if "bias" in self._own else self.base_layer.bias

    def load(self, adapter: str, parameter: str, change: Change) -> None:
        """Take over an adapter's values for one parameter."""
        self.wagle_changes[adapter].add_module(parameter, change)

    def check_adapters(self, adapters: Sequence[str], combine: str) -> None:
        """Raise AdapterOverlapError if these adapters cannot be active together."""
        for parameter in self._touched(adapters):
            check_overlap(self.wagle_names[parameter], self._parts(adapters, parameter), combine)

    def activate(self, adapters: Sequence[str], combine: str) -> None:
        """Make these adapters the active ones, the last of them on top."""
        self._active_adapter = list(adapters)
        self.wagle_shared = nn.Module()
        for parameter in self._touched(adapters) if combine == "sum" else ():
            parts = self._parts(adapters, parameter)
            shared = shared_values(self.wagle_names[parameter], parts, self._own[parameter])
            if shared is not None:
                self.wagle_shared.add_module(parameter, Change(shared))

    def _touched(self, adapters: Iterable[str]) -> list[str]:
        return list(
            dict.fromkeys(
                p for a in adapters if a in self.wagle_changes for p, _ in self.wagle_changes[a].named_children()
            )
        )

    def _parts(self, adapters: Iterable[str], parameter: str) -> list[SparseValues]:
        """What each of the adapters has for a parameter."""
        holders = [self.wagle_changes[adapter] for adapter in adapters if adapter in self.wagle_changes]
        return [getattr(holder, parameter).sparse for holder in holders if hasattr(holder, parameter)]

    def _writes(self, adapters: Iterable[str], parameter: str) -> list[SparseValues]:
        """What to write into a parameter for the adapters, which are active, in this order."""
        shared = getattr(self.wagle_shared, parameter, None)
        return [*self._parts(adapters, parameter), *([] if shared is None else [shared.sparse])]

    def _in_force(self) -> list[str]:
        """The parameters that differ from those of the base layer."""
        if self.merged or self.disable_adapters:
            return []
        for adapter in self.active_adapters:
            if adapter in self.wagle_changes and not len(list(self.wagle_changes[adapter].children())):
                raise RuntimeError(
                    f"The adapter {adapter!r} has no values yet. Load it by PeftModel.from_pretrained(base, path) or "
                    "PeftModel.load_adapter, which read and check them."
                )
        return self._touched(self.active_adapters)

    def effective(self, parameter: str) -> Any:
        """A parameter as the layer uses it now: the base layer's own, or a new tensor."""
        base = self._own[parameter]
        if parameter not in self._in_force():
            return base
        if base.is_meta:
            raise RuntimeError(
                f"{self.wagle_names[parameter]!r} has been offloaded since the adapter was loaded: an adapter cannot be "
                "switched on there. Merge it before the model is offloaded, or keep the model in memory."
            )
        return _with_values(base, self._writes(self.active_adapters, parameter))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's forward pass with the active adapters' values."""
        parameters = self._in_force()
        if not parameters:
            return self.base_layer(*args, **kwargs)
        with _ONE_THREAD:
            tensors = {parameter: self.effective(parameter) for parameter in parameters}
            rebuilt: AbstractContextManager = nullcontext()
            if torch.is_grad_enabled():
                rebuilt = _Rebuilt(
                    {
                        tensor.untyped_storage().data_ptr(): (self._own[p], self._writes(self.active_adapters, p))
                        for p, tensor in tensors.items()
                    }
                )
            with rebuilt:
                return functional_call(self.base_layer, tensors, args, kwargs)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Exchange the base layer's values with those of the active adapters. See `WagleModel.merge_adapter`."""
        for parameter in self._in_force():
            if parameter not in self.wagle_tied:
                for part in self._writes(self.active_adapters, parameter):
                    swap(self._own[parameter], part.positions, part.values)
        self.merged_adapters = [adapter for adapter in self.active_adapters if adapter in self.wagle_changes]

    @torch.no_grad()
    def unmerge(self) -> None:
        """Exchange them back."""
        adapters, self.merged_adapters = self.merged_adapters, []
        for parameter in self._touched(adapters):
            if parameter not in self.wagle_tied:
                for part in reversed(self._writes(adapters, parameter)):
                    swap(self._own[parameter], part.positions, part.values)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        """PEFT asks for it after loading; the values are put there when they are loaded."""


def _with_values(base: Tensor, parts: list[SparseValues]) -> Tensor:
    tensor = base.detach().clone()
    for part in parts:
        put(tensor, part.positions, part.values)
    return tensor


class _Rebuilt(saved_tensors_hooks):
    """Keeps no tensor for the backward pass that can be rebuilt from the base layer and the adapters' values."""

    def __init__(self, sources: dict[int, tuple[Tensor, list[SparseValues]]]):
        versions = {key: base._version for key, (base, _) in sources.items()}

        def pack(tensor: Tensor) -> Any:
            key = tensor.untyped_storage().data_ptr()
            return (key, tensor.size(), tensor.stride(), tensor.storage_offset()) if key in sources else tensor

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            key, *layout = packed
            base, parts = sources[key]
            if base._version != versions[key]:
                raise RuntimeError(
                    "A weight of the base model was changed, as by merging an adapter, between a forward and its "
                    "backward pass."
                )
            return _with_values(base, parts).as_strided(*layout)

        super().__init__(pack, unpack)
