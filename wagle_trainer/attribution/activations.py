"""Activations: the inputs of a model's matrices over a data set, as scores need them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wagle_trainer.engines.sharding import device_of
from wagle_trainer.models.architecture import Use, WeightMatrix, holds_experts, uses_of
from wagle_trainer.models.log_probs import label_mask


class Activations:
    """Sums over tokens of the squared inputs of each matrix among the parameters.

    Matrices are the weights of `nn.Linear`, of Transformers' Conv1D and of its fused experts; an expert counts the
    tokens that the router sends to it. Real tokens count; in a head that runs on the positions of target tokens alone
    (`logits_to_keep`), those positions. So neither padding nor batch size matters.

    Raises:
        ValueError: fused experts whose inputs no hook can see.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]):
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, Tensor] = {}
        self.matrices: dict[str, WeightMatrix] = {}
        self.hooks: list[Any] = []
        self._masks: tuple[Tensor, ...] | None = None
        experts: dict[nn.Module, dict[str, str]] = {}
        uses = list(uses_of(model, parameters))
        for use in uses:  # all of them before the first hook: an error leaves none on the model
            _check_inputs_are_seen(use)
        for key, module, attribute, matrix in uses:
            if matrix is not None and not matrix.experts:
                self._make_room(key, matrix, module, attribute)
                self.hooks.append(module.register_forward_pre_hook(self._add_to(key)))
            elif matrix is not None and _has_experts_interface(module):
                self._make_room(key, matrix, module, attribute)
                experts.setdefault(module, {})[attribute] = key
        for module, keys in experts.items():
            self.hooks.append(module.register_forward_pre_hook(self._add_experts(keys), with_kwargs=True))

    def _make_room(self, key: str, matrix: WeightMatrix, module: nn.Module, attribute: str) -> None:
        weight = getattr(module, attribute)
        experts = [weight.shape[0]] if matrix.experts else []
        device = device_of(weight)  # not that of the batch, where a model is spread over devices
        self.matrices[key] = matrix
        self.sums[key] = torch.zeros([*experts, weight.shape[matrix.input_dim]], device=device)
        self.tokens[key] = torch.zeros(experts, device=device)

    def look_at(self, batch: Mapping[str, Tensor] | None) -> None:
        """Set which batch the next forward pass is for; None if it does not count."""
        self._masks = None
        if batch is not None:
            attention_mask = batch.get("attention_mask")
            real = torch.ones_like(batch["input_ids"]) if attention_mask is None else attention_mask
            labelled = label_mask(batch["labels"], attention_mask)
            self._masks = (real.bool(), labelled[:, labelled.any(0)])

    def _counted(self, key: str, shape: torch.Size, rows: Tensor) -> Tensor:
        """Which of the rows are tokens that count, bool (rows,)."""
        assert self._masks is not None
        mask = next((mask for mask in self._masks if mask.numel() == len(rows)), None)
        if mask is None:
            raise ValueError(
                f"The inputs of {key!r} cannot be assigned to tokens: shape {tuple(shape)} for input_ids "
                f"{tuple(self._masks[0].shape)}. Leave it out with attribution_exclude."
            )
        return mask.flatten().to(rows.device)

    def _add_to(self, key: str) -> Callable[..., None]:
        def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if self._masks is None:
                return
            rows = arguments[0].detach().flatten(0, -2)
            counted = self._counted(key, arguments[0].shape, rows)
            self.sums[key] += rows[counted].float().square().sum(0)
            self.tokens[key] += counted.sum()

        return add

    def _add_experts(self, keys: Mapping[str, str]) -> Callable[..., None]:
        """Recompute what each expert multiplies: its module shows the inputs of all of them at once."""

        @torch.no_grad()
        def add(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self._masks is None:
                return
            given = inspect.signature(module.forward).bind(*arguments, **named).arguments
            hidden, routed = (value.detach() for value in list(given.values())[:2])  # top_k_index
            rows, routed = hidden.flatten(0, -2), routed.flatten(0, -2)
            counted = self._counted(next(iter(keys.values())), hidden.shape, rows)
            up = "gate_up_proj" if module.has_gate else "up_proj"
            for expert in routed[counted].unique().tolist():
                if expert >= module.num_experts:  # a token that no expert of this process gets
                    continue
                inputs = rows[counted & (routed == expert).any(-1)]
                self._add_rows(keys.get(up), expert, inputs)
                if "down_proj" in keys:
                    self._add_rows(keys["down_proj"], expert, _intermediate(module, up, expert, inputs))

        return add

    def _add_rows(self, key: str | None, expert: int, rows: Tensor) -> None:
        if key is not None:
            self.sums[key][expert] += rows.float().square().sum(0)
            self.tokens[key][expert] += len(rows)

    def add_up(self) -> None:
        """Sum over processes."""
        for tensor in (*self.sums.values(), *self.tokens.values()):
            dist.all_reduce(tensor)

    def root_mean_square(self) -> dict[str, Tensor]:
        """By parameter: the root mean square of each input feature, in a shape that broadcasts against the parameter."""
        return {
            key: self.matrices[key].along_inputs((total / self.tokens[key].clamp(min=1).unsqueeze(-1)).sqrt())
            for key, total in self.sums.items()
        }


def _check_inputs_are_seen(use: Use) -> None:
    """Raise ValueError for fused experts whose inputs no hook can see."""
    module, plain = use.module, use.matrix is not None and not use.matrix.experts
    if plain or not holds_experts(module) or _has_experts_interface(module):
        return
    if getattr(module, use.attribute).dim() > 1:
        raise ValueError(
            f"{use.name!r} holds the weights of several experts ({type(module).__name__}), and the inputs of each "
            "cannot be seen from outside: scores of activations do not work on it. Leave it out with "
            "attribution_exclude, or take a score of gradients."
        )


def _has_experts_interface(module: nn.Module) -> bool:
    """Whether Transformers' `use_experts_implementation` made the module; tests/test_upstream.py watches it."""
    return all(hasattr(module, name) for name in ("num_experts", "has_gate", "has_bias", "is_transposed", "down_proj"))


def _intermediate(module: Any, up: str, expert: int, inputs: Tensor) -> Tensor:
    """The inputs of an expert's down projection, as Transformers' experts interface computes them."""
    weight = getattr(module, up)[expert]
    states = inputs @ weight if module.is_transposed else inputs @ weight.T
    if module.has_bias:
        states = states + getattr(module, f"{up}_bias")[expert]
    return module._apply_gate(states) if module.has_gate else module.act_fn(states)
