"""`WagleModel`: the tuner of the PEFT method "WAGLE", which loads, switches, merges and removes adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from wagle_trainer.adapters.adapter import (
    AdapterMismatchError,
    SparseAdapter,
    base_dtype,
    check_layout,
    differing,
    keys_of,
    raise_for_base,
)
from wagle_trainer.adapters.composition import check_combination
from wagle_trainer.adapters.config import WagleAdapterConfig
from wagle_trainer.adapters.layer import Change, WagleLayer
from wagle_trainer.adapters.sparse import SparseValues


class WagleModel(BaseTuner):
    """
    Sparse adapters of freely chosen positions on any parameters of a model: linear layers, embeddings, tied heads, norms,
    biases. Made by training with `WagleConfig(save_adapter=True)` or by [`diff`], and loaded as every PEFT adapter:

    Example:
        >>> import wagle_trainer
        >>> model = PeftModel.from_pretrained(base, "forget-request-1", "one")
        >>> model.load_adapter("forget-request-2", "two")
        >>> model.base_model.set_adapter(["one", "two"], combine="error")
        >>> model.delete_adapter("one")  # revoked: exactly what "two" alone gives

    The base model's tensors are shared, not copied: an active adapter costs one touched module's parameters at a time.
    After `merge_adapter` a forward pass costs nothing more; the adapter holds the displaced values meanwhile, so that
    `unmerge_adapter` restores the base model, bitwise identical.
    """

    prefix: str = "wagle_"
    tuner_layer_cls = WagleLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (as PEFT declares it)
    peft_config: dict[str, Any]
    combine: str = "error"
    _merged_when_disabled = False

    # Loading

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Prepare the layers for an adapter, whose values PEFT loads next; check that it belongs to this base model.

        Args:
            model: the base model.
            adapter_name: name of the adapter.

        Raises:
            AdapterMismatchError: the base model is another one, and `ignore_base_mismatch` is not set.
            ValueError: the adapter is to be trained, touches a parameter that cannot be switched, or has a name that
                modules cannot have.
        """
        config = self.peft_config[adapter_name]
        if not isinstance(self.peft_config, _Configs):
            self.peft_config = _Configs(self.peft_config)
        self.peft_config.last = config
        if not config.tensors:
            raise ValueError(
                "A WAGLE adapter is not made empty: train with WagleConfig(save_adapter=True), or make one of two "
                "checkpoints with wagle_trainer.adapters.diff(base, tuned)."
            )
        if not config.inference_mode:
            raise ValueError(
                "WAGLE adapters are not trained through PEFT: leave is_trainable=True out. To go on training, merge the "
                "adapter and train the model with WagleConfig(save_adapter=True)."
            )
        if "." in adapter_name or hasattr(nn.ModuleDict(), adapter_name):
            raise ValueError(
                f"{adapter_name!r} cannot be the name of an adapter: PyTorch's modules have no names with a dot, nor those of "
                "their own attributes. Load it under another name."
            )
        if self._is_merged():
            warnings.warn("An adapter is merged: unmerging it to load another one.", stacklevel=2)
            self.unmerge_adapter()
        owners = owners_by_name(model)
        parameters = {name: places[0].tensor for name, places in owners.items()}
        self._check_base(parameters, config)
        for name in config.tensors:
            for place in owners[name]:
                _check_place(name, place)
        wrapped: dict[nn.Module, WagleLayer] = {}
        for name in config.tensors:
            first = None
            for place in owners[name]:
                layer = place.module if isinstance(place.module, WagleLayer) else wrapped.get(place.module)
                if layer is None:
                    layer = wrapped[place.module] = WagleLayer(place.module).train(place.module.training)
                assert place.parent is not None  # `_check_place`
                place.parent._modules[place.child] = layer  # `parent` is never a wrapper
                layer.wagle_names[place.parameter] = name
                first = first or layer
                if layer is not first:
                    layer.wagle_tied.add(place.parameter)
                if adapter_name not in layer.wagle_changes:
                    layer.wagle_changes[adapter_name] = nn.Module()
        if config.combine != "error":
            self.combine = config.combine
        model.requires_grad_(False)
        self.set_adapter(self.active_adapters)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's way of wrapping the modules that a pattern matches; `inject_adapter` wraps what the adapter names."""
        raise NotImplementedError("WAGLE adapters name their parameters: there are no target modules.")

    def _check_base(self, parameters: dict[str, Tensor], config: WagleAdapterConfig) -> None:
        assert config.tensors is not None
        ignore, base_model = config.ignore_base_mismatch, config.base_model_name_or_path
        tensors = {n: (tuple(e["shape"]), base_dtype(e)) for n, e in config.tensors.items()}
        check_layout(parameters, tensors, base_model, any_dtype=ignore)
        if not ignore:
            digests = {name: entry["base_digest"] for name, entry in config.tensors.items()}
            raise_for_base(differing(parameters, digests), base_model)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Check what the file holds and hand it to the layers; nothing is left for PEFT to load.

        Raises:
            ValueError: the name is in use by another adapter.
        """
        loaded = any(
            len(list(layer.wagle_changes[adapter_name].children()))
            for layer in _layers(model)
            if adapter_name in layer.wagle_changes
        )
        try:
            adapter = SparseAdapter.from_state_dict(state_dict, config.to_dict(), config.loaded_from)
        except AdapterMismatchError as error:
            if not loaded:
                raise
            raise ValueError(
                f"There is another adapter with the name {adapter_name!r}. Load this one under another name "
                f"(adapter_name=...), or call delete_adapter({adapter_name!r}) first."
            ) from error
        if loaded:  # the same adapter once more
            return {}
        changes: dict[str, Change] = {}
        for layer in _layers(model):
            for parameter, name in layer.wagle_names.items():
                if name in adapter and adapter_name in layer.wagle_changes:
                    base, sparse = layer.base_layer.get_parameter(parameter), adapter[name]
                    if name not in changes:
                        values = sparse.values.to(base.device, base.dtype)
                        rounded = SparseValues(sparse.shape, sparse.positions.to(base.device), values)
                        masters = sparse.values.cpu() if adapter.base_dtypes[name] != sparse.values.dtype else None
                        changes[name] = Change(rounded, masters)
                    layer.load(adapter_name, parameter, changes[name])
        return {}

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: Any, unwanted_adapter_names: Any
    ) -> dict[str, Tensor]:
        """The content of the adapter's file.

        Raises:
            ValueError: there is no such adapter, its values were never loaded, or they are no longer what they were, since
                the model was cast to another dtype.
        """
        changes = {
            layer.wagle_names[parameter]: cast(Change, change)
            for layer in _layers(model)
            if adapter_name in layer.wagle_changes
            for parameter, change in layer.wagle_changes[adapter_name].named_children()
        }
        if not changes:
            raise ValueError(
                f"There is no adapter {adapter_name!r}, or its values were never loaded: nothing to save."
            )
        for name, change in changes.items():
            _check_not_cast(name, change, config)
        merged = [layer for layer in _layers(model) if layer.merged]
        for layer in merged:
            layer.unmerge()
        tensors: dict[str, Tensor] = {}
        for name, change in changes.items():
            kept = [t.clone() if merged else t for t in (change.positions, change.exact.values)]
            tensors.update(zip(keys_of(name), kept, strict=True))
        for layer in merged:
            layer.merge()
        return tensors

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key  # there is none in the names of `keys_of`

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """The values are the model's weights: they have its dtype."""

    # Switching

    def set_adapter(
        self, adapter_name: str | list[str], inference_mode: bool = False, combine: str | None = None
    ) -> None:
        """Choose the adapters that are active; an empty list gives the base model.

        Args:
            adapter_name: one or more of the loaded adapters.
            inference_mode: without effect; adapters are not trained here.
            combine: the rule for weights that several of them set, from now on: "error", "last" (of this list) or "sum".

        Raises:
            AdapterOverlapError: adapters overlap, and `combine` is "error"; nothing is changed then.
            ValueError: an unknown adapter or rule.
        """
        adapters = [adapter_name] if isinstance(adapter_name, str) else list(dict.fromkeys(adapter_name))
        combine = combine or self.combine
        check_combination(combine)
        if unknown := [adapter for adapter in adapters if adapter not in self.peft_config]:
            raise ValueError(f"There is no adapter {unknown[0]!r}. Loaded: {', '.join(self.peft_config)}.")
        if self._is_merged():
            warnings.warn("Adapters cannot be switched while merged: unmerging them first.", stacklevel=2)
            self.unmerge_adapter()
        for layer in self._all_layers():
            layer.check_adapters(adapters, combine)
        for layer in self._all_layers():
            layer.activate(adapters, combine)
        self.active_adapter, self.combine = adapters, combine

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Iterator[None]:
        """Refuse `adapter_names`, PEFT's way to choose an adapter for each row of a batch.

        Raises:
            ValueError: `adapter_names` is given.
        """
        if adapter_names is not None:
            raise ValueError(
                "WAGLE adapters replace weights, so all rows of a batch have the same adapters: adapter_names is not "
                "supported. Run one batch for each adapter after set_adapter, and the base model's in disable_adapter()."
            )
        yield

    def disable_adapter_layers(self) -> None:
        """From now on the outputs are the base model's; a merged adapter is taken out."""
        if self._is_merged():
            self.unmerge_adapter()
            self._merged_when_disabled = True
        for layer in self._all_layers():
            layer._disable_adapters = True

    def enable_adapter_layers(self) -> None:
        """Undo `disable_adapter_layers`; what was merged is merged again."""
        for layer in self._all_layers():
            layer._disable_adapters = False
        if self._merged_when_disabled:
            self._merged_when_disabled = False
            self.merge_adapter()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; the others that are active stay so, and nothing of the removed one is left.

        Args:
            adapter_name: name of the adapter.

        Raises:
            ValueError: there is no such adapter, or it is merged.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"There is no adapter {adapter_name!r}. Loaded: {', '.join(self.peft_config)}.")
        if any(adapter_name in layer.merged_adapters for layer in self._all_layers()):
            raise ValueError(f"The adapter {adapter_name!r} is merged: call unmerge_adapter() before deleting it.")
        remaining = [adapter for adapter in self.active_adapters if adapter != adapter_name]
        if not remaining and adapter_name in self.active_adapters:
            warnings.warn(
                f"{adapter_name!r} was the only active adapter: the base model answers from now on, with the knowledge that "
                "the adapter removed. Call set_adapter to activate another adapter.",
                stacklevel=2,
            )
        self.set_adapter(remaining)
        del self.peft_config[adapter_name]
        for layer in self._all_layers():
            if adapter_name in layer.wagle_changes:
                del layer.wagle_changes[adapter_name]

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Write the active adapters' values into the base model, which keeps its memory: values are exchanged.

        Args:
            adapter_names: make these the active ones first.
            safe_merge: refuse values that are not finite.

        Raises:
            ValueError: an adapter is merged already, adapters are disabled, or values are not finite.
        """
        if self._is_merged():
            names = sorted({name for layer in self._all_layers() for name in layer.merged_adapters})
            raise ValueError(
                f"The adapters {', '.join(names)} are merged already. Call unmerge_adapter() before merging again."
            )
        if any(layer.disable_adapters for layer in self._all_layers()):
            raise ValueError("The adapters are disabled: enable them before merging.")
        if adapter_names is not None:
            self.set_adapter(adapter_names)
        if safe_merge:
            for layer in self._all_layers():
                for parameter in layer._in_force():
                    if not bool(torch.isfinite(layer.effective(parameter)).all()):
                        raise ValueError(f"{layer.wagle_names[parameter]!r} would have values that are not finite.")
        for layer in self._all_layers():
            layer.merge()

    def unmerge_adapter(self) -> None:
        """Restore the base model's values, bitwise identical."""
        for layer in self._all_layers():
            layer.unmerge()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The base model with the adapters' values for good: the trained model.

        Args:
            progressbar: show a progress bar.
            safe_merge: refuse values that are not finite.
            adapter_names: the adapters to merge; the active ones if None.
        """
        if not self._is_merged():
            self.merge_adapter(adapter_names, safe_merge)
        elif adapter_names is not None:
            raise ValueError("An adapter is merged already: call unmerge_adapter() before choosing which to merge.")
        return self._unwrap()

    def unload(self) -> nn.Module:
        """The base model as it was, bitwise identical."""
        if self._is_merged():
            self.unmerge_adapter()
        return self._unwrap()

    def _unwrap(self) -> nn.Module:
        for places in owners_by_name(self.model).values():
            for place in places:
                if isinstance(place.module, WagleLayer):
                    assert place.parent is not None
                    place.parent._modules[place.child] = place.module.base_layer
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    def _all_layers(self) -> list[WagleLayer]:
        return list(_layers(self.model))

    def _is_merged(self) -> bool:
        return any(layer.merged for layer in self._all_layers())


class _Configs(dict[str, WagleAdapterConfig]):
    """The configurations by adapter. `PeftModel` goes on asking for that of a deleted adapter, to learn its kind, as long
    as it counts as the active one there."""

    last: WagleAdapterConfig

    def __missing__(self, name: str) -> WagleAdapterConfig:
        return self.last


class Place(NamedTuple):
    """Where a parameter is held: the module that holds it, wrapped or not, and that one's place in its parent."""

    parent: nn.Module | None
    child: str
    module: nn.Module
    parameter: str
    tensor: Tensor


def owners_by_name(model: nn.Module) -> dict[str, list[Place]]:
    """The parameters by the names that they have in the base model, with the places of each; several if it is tied."""
    names: dict[Tensor, str] = {}
    places: dict[str, list[Place]] = {}

    def visit(module: nn.Module, path: str, parent: nn.Module | None, child: str) -> None:
        base = module.base_layer if isinstance(module, WagleLayer) else module
        for parameter, tensor in base._parameters.items():
            if tensor is not None:
                name = names.setdefault(tensor, path + parameter)
                places.setdefault(name, []).append(Place(parent, child, module, parameter, tensor))
        for name, sub in base._modules.items():
            if sub is not None:
                visit(sub, f"{path}{name}.", base, name)

    visit(model, "", None, "")
    return places


def _check_place(name: str, place: Place) -> None:
    if place.parent is None or isinstance(place.module, nn.ParameterList | nn.ParameterDict):
        raise ValueError(
            f"The parameter {name!r} is held by {'the model itself' if place.parent is None else 'a list or dictionary'}, "
            "where it cannot be switched on and off. Use wagle_trainer.adapters.merge(base, adapter)."
        )


def _check_not_cast(name: str, change: Change, config: WagleAdapterConfig) -> None:
    assert config.tensors is not None
    loaded = config.tensors[name]["dtype"]
    if change.exact.values.dtype != getattr(torch, loaded):
        raise ValueError(
            f"The adapter's values of {name!r} are {change.values.dtype} by now, but the adapter is of {loaded}: the model "
            "is in another dtype, so what was loaded cannot be saved any more. Copy the adapter's folder."
        )


def _layers(model: nn.Module) -> Iterator[WagleLayer]:
    return (module for module in model.modules() if isinstance(module, WagleLayer))
