"""Facts about a model's architecture: wrappers, layers, head, weight matrices, experts, positions, padding.

Facts are read from modules and signatures, not from lists of model names, so that new families are covered. What no
attribute tells (`stands_left_padding`) is probed. `causality.py` tells whether a model is causal.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from wagle_trainer.engines.sharding import named_parameters
from wagle_trainer.models.modes import evaluation_mode, preserved_rng


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP, FSDP1, `torch.compile` and PEFT."""
    while True:
        if isinstance(getattr(model, "module", None), nn.Module):
            model = model.module  # type: ignore[assignment]
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model; multimodal models hold it inside theirs. None without one."""
    config = getattr(unwrap(model), "config", None)
    return config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config


# Kind

NEEDS_CAUSAL = "Losses and scores of target tokens need a causal language model (AutoModelForCausalLM)."


def refuse_encoder_decoder(model: nn.Module) -> None:
    """Raise ValueError for an encoder-decoder: its encoder reads the answer that its decoder is to predict."""
    inner = unwrap(model)
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{type(inner).__name__} is an encoder-decoder: its encoder reads the whole text, answers included. "
            f"{NEEDS_CAUSAL}"
        )


# Forward pass


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of the unwrapped model's `forward`."""
    return inspect.signature(unwrap(model).forward).parameters


def takes_positions(model: nn.Module) -> bool:
    """Whether the forward pass takes `position_ids`."""
    return "position_ids" in forward_parameters(model)


def keeps_some_logits(model: nn.Module) -> bool:
    """Whether the forward pass takes `logits_to_keep`, the positions to compute logits for."""
    return "logits_to_keep" in forward_parameters(model)


# Layers and head


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that computes logits from hidden states; None if the model names none."""
    model = unwrap(model)
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]


def decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The decoder layers of the language model; None if no list of modules has their number."""
    model = unwrap(model)
    number = getattr(text_config(model), "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    for root in (decoder, model):  # the decoder first: a vision tower may have as many layers
        for module in root.modules() if isinstance(root, nn.Module) else ():
            if isinstance(module, nn.ModuleList) and len(module) == number:
                return module
    return None


def decoder_layer(model: nn.Module, index: int, what: str) -> nn.Module:
    """The decoder layer `index` of a transformer, counted from 0.

    Args:
        model: possibly wrapped.
        index: which layer.
        what: the setting that needs the layer, for errors.

    Raises:
        ValueError: there is no such layer, or no list of layers.
    """
    name, layers = type(unwrap(model)).__name__, decoder_layers(model)
    if layers is None:
        number = getattr(text_config(model), "num_hidden_layers", None)
        raise ValueError(f"{what} needs a decoder layer, but {name} has no list of {number} layers.")
    if not 0 <= index < len(layers):
        raise ValueError(
            f"{what} needs layer {index}, but {name} has layers 0 to {len(layers) - 1}. Choose one of "
            'them with loss_kwargs={"layer": ...} (or {"retain_layer": ...} for retain_loss="embed_diff").'
        )
    return layers[index]


# Weight matrices


@dataclass(frozen=True)
class WeightMatrix:
    """Where a parameter that multiplies hidden states is, and how it is laid out.

    Attributes:
        module: name of the module that holds it.
        transposed: (..., inputs, outputs) as in GPT-2's Conv1D, in place of (..., outputs, inputs) as in `nn.Linear`.
        experts: 3-D, the first dimension counts the experts of a mixture.
    """

    module: str
    transposed: bool = False
    experts: bool = False

    @property
    def input_dim(self) -> int:
        """The dimension along which the inputs lie."""
        return -2 if self.transposed else -1

    def rows(self, tensor: Tensor) -> Tensor:
        """A view of `tensor` (of the parameter's shape) whose last dimensions are (outputs, inputs)."""
        return tensor.transpose(-1, -2) if self.transposed else tensor

    def flat_rows(self, tensor: Tensor) -> Tensor:
        """`rows` as (all outputs, inputs): one row for each output of each expert; each entry of a vector is a row."""
        if tensor.dim() < 2:
            return tensor.reshape(-1, 1)
        return self.rows(tensor).flatten(0, 1) if self.experts else self.rows(tensor).flatten(1)

    def from_flat_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `flat_rows`, for a parameter of `shape`."""
        upright = (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape
        return self.rows(rows.reshape(upright))

    def along_inputs(self, values: Tensor) -> Tensor:
        """One value per input, (inputs,) or (experts, inputs), in a shape that broadcasts against the parameter."""
        return values.unsqueeze(-1 if self.transposed else -2) if self.experts or self.transposed else values


# The layout of everything that is no weight matrix, and of embeddings: rows along the first dimension.
NO_MATRIX = WeightMatrix("")


def weight_matrices(model: nn.Module) -> dict[str, WeightMatrix]:
    """Parameter name -> layout, for the weights of linear layers and fused experts, without the output head."""
    head = output_head(model)
    found: dict[str, WeightMatrix] = {}
    for use in uses_of(model, named_parameters(model)):
        if use.matrix is not None and use.module is not head:
            found.setdefault(use.name, use.matrix)
    return found


class Use(NamedTuple):
    """A module's use of a parameter: the parameter's name, the module, the attribute, and the matrix that it is."""

    name: str
    module: nn.Module
    attribute: str
    matrix: WeightMatrix | None


def uses_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[Use]:
    """Every module's use of one of `parameters`, the output head's, too; a tied parameter has several.

    Args:
        model: possibly wrapped.
        parameters: by their names in the model: its parameters, or others that an engine puts in their places.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    for name, parameter in named_parameters(unwrap(model)).items():
        if name in parameters:
            names.setdefault(parameter, name)
    for module_name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter in names:
                yield Use(names[parameter], module, attribute, _matrix_in(module_name, module, parameter))


def layouts_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, WeightMatrix]:
    """Name -> layout of all `parameters`, see `uses_of`; `NO_MATRIX` for those that are no matrices."""
    layouts = dict.fromkeys(parameters, NO_MATRIX)
    for use in uses_of(model, parameters):
        if use.matrix is not None:
            layouts[use.name] = use.matrix
    return layouts


def _matrix_in(module_name: str, module: nn.Module, parameter: nn.Parameter) -> WeightMatrix | None:
    if (isinstance(module, nn.Linear) or _is_conv1d(module)) and parameter is module.weight:
        return WeightMatrix(module_name, transposed=_is_conv1d(module))
    if holds_experts(module) and parameter.dim() == 3:
        return WeightMatrix(module_name, _experts_are_transposed(module), experts=True)
    return None


def linear_weights(model: nn.Module) -> dict[str, str]:
    """Module name -> parameter name of all Linear and Conv1D modules but the output head.

    These are the modules that PEFT's "all-linear" adapts; TRL refuses the output head.
    """
    return {
        matrix.module: name
        for name, matrix in weight_matrices(model).items()
        if name == f"{matrix.module}.weight" and not matrix.experts
    }


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a module is Transformers' Conv1D, a linear layer; by name, since Transformers may not be installed."""
    return type(module).__name__ == "Conv1D" and not isinstance(module, nn.Conv1d)


def holds_experts(module: nn.Module) -> bool:
    """Whether a module holds the fused weights of experts: Transformers names such classes so."""
    return "Expert" in type(module).__name__


def _experts_are_transposed(module: nn.Module) -> bool:
    """Whether fused experts are (experts, inputs, outputs)."""
    if hasattr(module, "is_transposed"):  # set by Transformers' `use_experts_implementation`
        return bool(module.is_transposed)
    up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if isinstance(up, Tensor) and isinstance(down, Tensor) and up.dim() == down.dim() == 3:
        # up maps hidden to 2 x intermediate, down maps intermediate to hidden
        return up.shape[2] == 2 * down.shape[1] and up.shape[1] == down.shape[2]
    return False


# Padding

_STANDS_LEFT_PADDING: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def stands_left_padding(model: nn.Module) -> bool:
    """Whether padding on the left leaves the predictions for an example unchanged.

    Some recurrent models read padding as text. The answer is probed once per model: a short example alone, and beside a
    longer one. Where it is False, batches must have examples of equal length.
    """
    bare = unwrap(model)
    if bare not in _STANDS_LEFT_PADDING:
        _STANDS_LEFT_PADDING[bare] = _probe_left_padding(model, bare)
    return _STANDS_LEFT_PADDING[bare]


def _probe_left_padding(model: nn.Module, bare: nn.Module) -> bool:
    device = next(bare.parameters()).device
    vocabulary = getattr(text_config(bare), "vocab_size", 16)
    example = torch.arange(4, device=device)[None] % vocabulary
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long, device=device), example], 1)
    mask = (torch.arange(7, device=device) >= 3).long()[None]
    inputs: dict[str, Any] = {"input_ids": padded, "attention_mask": mask}
    if takes_positions(bare):
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with preserved_rng(), evaluation_mode(model):
        alone = model(input_ids=example, attention_mask=torch.ones_like(example)).logits.float()
        beside = model(**inputs).logits[:, 3:].float()
    scale = alone.std() + 1e-6
    return bool(((alone - beside).abs().max() / scale < 0.05).item())


def is_quantised(model: nn.Module) -> bool:
    """Whether a model has quantised weights, as Transformers loads them."""
    inner = unwrap(model)
    return bool(getattr(inner, "is_quantized", False)) or getattr(inner, "hf_quantizer", None) is not None
