"""`WagleLayer`: a module of the base model with the adapters' values for its own parameters."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
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

    Args:
        sparse: values in the format of the base model.
        masters: the float32 values whose rounding those are, on the CPU; None if there are none.
    """

    positions: Tensor
    values: Tensor

    def __init__(self, sparse: SparseValues, masters: Tensor | None = None):
        super().__init__()
        self.shape = sparse.shape
        self.masters = masters  # no buffer, which a cast of the model would round
        self.register_buffer("positions", sparse.positions, persistent=False)
        self.register_buffer("values", sparse.values, persistent=False)

    @property
    def sparse(self) -> SparseValues:
        """Positions and values; not a copy."""
        return SparseValues(self.shape, self.positions, self.values)

    @property
    def exact(self) -> SparseValues:
        """Positions and values as they were loaded: float32 masters, if there are any."""
        return self.sparse if self.masters is None else SparseValues(self.shape, self.positions, self.masters)


class WagleLayer(nn.Module, BaseTunerLayer):
    """Runs a module with the values of the active adapters in place of the base model's.

    Works for any module: the parameters that adapters touch are assembled for one call of the module at a time and
    dropped after it, also where a backward pass is to follow, which assembles them again. This holds for calls of any
    of the module's methods (JetMoE's attention calls `map` and `reduce` of its experts, never `forward`), and for
    parameters that other modules read, as a fused language model head does.
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
            if name in ("base_layer", "_base"):  # not set yet, as in a copy under way
                raise
        if name in self._base:
            return self.effective(name)
        found = getattr(self.base_layer, name)
        if inspect.ismethod(found) and found.__self__ is self.base_layer:
            return functools.partial(self._call, name)
        return found

    @property
    def _base(self) -> dict[str, Any]:
        """The base layer's parameters, with the base model's values."""
        return self.base_layer._parameters

    def get_base_layer(self) -> nn.Module:
        """Refuse other PEFT methods, which ask for the module that they are to adapt.

        Their merging would write into the base model's values beneath this adapter's.

        Raises:
            ValueError: always; says what to do.
        """
        raise ValueError(
            "Another PEFT method (such as LoRA) cannot adapt a module that has a WAGLE adapter: merging it would corrupt "
            "the base model. Merge the WAGLE adapter first, on a newly loaded base model: model = "
            'PeftModel.from_pretrained(base, "adapter").merge_and_unload(), then get_peft_model(model, ...).'
        )

    @property
    def weight(self) -> Any:
        """As the layer uses it now."""
        return self.effective("weight") if "weight" in self._base else self.base_layer.weight

    @property
    def bias(self) -> Any:
        """As the layer uses it now."""
        return self.effective("bias") if "bias" in self._base else self.base_layer.bias

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
            base = self._full(parameter)
            shared = shared_values(self.wagle_names[parameter], self._parts(adapters, parameter, exact=True), base)
            if shared is not None:
                self.wagle_shared.add_module(parameter, Change(replace(shared, values=shared.values.to(base.dtype))))

    def _touched(self, adapters: Iterable[str]) -> list[str]:
        return list(
            dict.fromkeys(
                p for a in adapters if a in self.wagle_changes for p, _ in self.wagle_changes[a].named_children()
            )
        )

    def _parts(self, adapters: Iterable[str], parameter: str, *, exact: bool = False) -> list[SparseValues]:
        """What each of the adapters has for a parameter, rounded to its format or exact."""
        holders = [self.wagle_changes[adapter] for adapter in adapters if adapter in self.wagle_changes]
        changes = [getattr(holder, parameter) for holder in holders if hasattr(holder, parameter)]
        return [change.exact if exact else change.sparse for change in changes]

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
        """A parameter as the layer uses it now: the base layer's, or a new tensor."""
        if parameter not in self._in_force():
            return self._base[parameter]
        return _with_values(self._full(parameter), self._writes(self.active_adapters, parameter))

    def _full(self, parameter: str) -> Tensor:
        """The base layer's parameter, in memory and in full.

        Raises:
            RuntimeError: it is offloaded or sharded.
        """
        name, base = self.wagle_names[parameter], self._base.get(parameter)
        if base is not None and base.is_meta:
            raise RuntimeError(
                f"{name!r} has been offloaded since the adapter was loaded: an adapter cannot be switched on there. Merge "
                "it before the model is offloaded, or keep the model in memory."
            )
        # FSDP1 keeps a view of its flat parameter as an attribute of the module, which hides the parameter.
        hidden = parameter in self.base_layer.__dict__
        if base is None or hidden or isinstance(base, DTensor) or tuple(base.shape) != self._shape(parameter):
            raise RuntimeError(
                f"{name!r} is sharded or flattened (FSDP1 and ZeRO-3 do so): an active adapter has no effect there. Merge the "
                "adapter before the model is sharded (merge_and_unload), or use FSDP2, one process or data parallelism."
            )
        return base

    def _shape(self, parameter: str) -> tuple[int, ...]:
        return next(
            getattr(holder, parameter).shape for holder in self.wagle_changes.values() if hasattr(holder, parameter)
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's forward pass with the active adapters' values."""
        return self._call(None, *args, **kwargs)

    def _call(self, method: str | None, *args: Any, **kwargs: Any) -> Any:
        """Call the base layer, or one of its methods, with the active adapters' values."""
        parameters = self._in_force()
        if not parameters:
            return (self.base_layer if method is None else getattr(self.base_layer, method))(*args, **kwargs)
        with _ONE_THREAD:
            tensors = {parameter: self.effective(parameter) for parameter in parameters}
            module = self.base_layer if method is None else _Method(self.base_layer, method)
            prefix = "" if method is None else "module."
            rebuilt: AbstractContextManager = nullcontext()
            if torch.is_grad_enabled():
                rebuilt = _Rebuilt(
                    {
                        tensor.untyped_storage().data_ptr(): (self._base[p], self._writes(self.active_adapters, p))
                        for p, tensor in tensors.items()
                    }
                )
            with rebuilt:
                return functional_call(module, {prefix + p: tensor for p, tensor in tensors.items()}, args, kwargs)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Exchange the base layer's values with those of the active adapters. See `WagleModel.merge_adapter`."""
        for parameter in self._in_force():
            self._full(parameter)
        for parameter in self._in_force():
            if parameter not in self.wagle_tied:
                for part in self._writes(self.active_adapters, parameter):
                    swap(self._full(parameter), part.positions, part.values)
        self.merged_adapters = [adapter for adapter in self.active_adapters if adapter in self.wagle_changes]

    @torch.no_grad()
    def unmerge(self) -> None:
        """Exchange them back."""
        adapters, self.merged_adapters = self.merged_adapters, []
        for parameter in self._touched(adapters):
            if parameter not in self.wagle_tied:
                for part in reversed(self._writes(adapters, parameter)):
                    swap(self._full(parameter), part.positions, part.values)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        """PEFT asks for it after loading; the values are put there when they are loaded."""


class _Method(nn.Module):
    """Calls a method of a module as its forward pass, so that `functional_call` can replace parameters meanwhile."""

    def __init__(self, module: nn.Module, method: str):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)


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
