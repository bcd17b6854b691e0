"""The inputs of Linear modules over a data set: activations, as scores need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wagle_trainer.engines.sharding import device_of
from wagle_trainer.models.log_probs import label_mask


class LinearInputs:
    """Sums over tokens of the squared inputs of each `nn.Linear` whose weight is among the parameters.

    Real tokens count; in a head that runs on the positions of target tokens alone (`logits_to_keep`), those positions.
    So neither padding nor batch size matters.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]):
        keys = {parameter: key for key, parameter in parameters.items()}
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, Tensor] = {}
        self.hooks = []
        self._masks: tuple[Tensor, ...] | None = None
        for module in model.modules():
            key = keys.get(module.weight) if isinstance(module, nn.Linear) else None  # type: ignore[call-overload]
            if key is not None:
                assert isinstance(module, nn.Linear)
                device = device_of(module.weight)  # not that of the batch, where a model is spread over devices
                self.sums[key] = torch.zeros(module.in_features, device=device)
                self.tokens[key] = torch.zeros((), device=device)
                self.hooks.append(module.register_forward_pre_hook(self._add_to(key)))

    def look_at(self, batch: Mapping[str, Tensor] | None) -> None:
        """Set which batch the next forward pass is for; None if it does not count."""
        self._masks = None
        if batch is not None:
            attention_mask = batch.get("attention_mask")
            real = torch.ones_like(batch["input_ids"]) if attention_mask is None else attention_mask
            labelled = label_mask(batch["labels"], attention_mask)
            self._masks = (real.bool(), labelled[:, labelled.any(0)])

    def _add_to(self, key: str) -> Any:
        def add(module: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
            if self._masks is None:
                return
            rows = arguments[0].detach().flatten(0, -2)
            mask = next((mask for mask in self._masks if mask.numel() == len(rows)), None)
            if mask is None:
                raise ValueError(
                    f"The inputs of {key!r} cannot be assigned to tokens: shape {tuple(arguments[0].shape)} for "
                    f"input_ids {tuple(self._masks[0].shape)}. Leave it out with attribution_exclude."
                )
            mask = mask.flatten().to(rows.device)
            self.sums[key] += rows[mask].float().square().sum(0)
            self.tokens[key] += mask.sum()

        return add

    def add_up(self) -> None:
        """Sum over processes."""
        for tensor in (*self.sums.values(), *self.tokens.values()):
            dist.all_reduce(tensor)

    def root_mean_square(self) -> dict[str, Tensor]:
        """By parameter, (in_features,)."""
        return {key: (total / self.tokens[key].clamp(min=1)).sqrt() for key, total in self.sums.items()}
