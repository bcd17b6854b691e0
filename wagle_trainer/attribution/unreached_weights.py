"""Selected weights that no gradient reaches: if the objective does not depend on their tensors, they cannot change."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wagle_trainer.engines.sharding import local_part, named_parameters
from wagle_trainer.masking.mask import WeightMask
from wagle_trainer.utils.percent import percent

# Below this share of the selected weights there is nothing to say.
WORTH_A_WARNING = 0.01


class UnreachedWeights:
    """Watches the first optimizer step for tensors of the mask that get no gradient, or only zeros.

    RMU, for example, steers the hidden states of one layer: nothing above it gets a gradient.

    Args:
        model: the unwrapped model. Make this before other hooks take gradients away.
        mask: fits the model.
    """

    def __init__(self, model: nn.Module, mask: WeightMask):
        self._selected: dict[str, int] = {}
        self._reached: set[str] = set()
        self._handles: list[Any] = []
        for name, parameter in named_parameters(model).items():
            selected = mask.num_selected_in(name) if name in mask and parameter.requires_grad else 0
            if selected:
                self._selected[name] = selected
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._look(name)))

    def _look(self, name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if name not in self._reached and parameter.grad is not None and bool(local_part(parameter.grad).any()):
                self._reached.add(name)

        return look

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def names(self) -> list[str]:
        """Tensors without a gradient so far; none where the engine shows no gradients to hooks (FSDP1, ZeRO-3)."""
        return [name for name in self._selected if name not in self._reached] if self._reached else []

    @property
    def share(self) -> float:
        """Share of the selected weights that lie in those tensors."""
        return sum(self._selected[name] for name in self.names) / max(sum(self._selected.values()), 1)

    def warn(self) -> None:
        """Say how much of the mask has no effect, if it is worth it, and how to leave it out."""
        names = self.names
        if self.share < WORTH_A_WARNING:
            return
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(
            f"{percent(self.share)} of the selected weights lie in {len(names)} tensors that no gradient reached in the first "
            f"step ({', '.join(names[:3])}{more}). Where the objective does not depend on them, as RMU's on the layers above "
            "its own, they will not change: leave them out of the scoring with "
            f"attribution_exclude={patterns_for(names, list(self._selected))}.",
            stacklevel=2,
        )


def patterns_for(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Regular expressions that match all of `names` and no other name of `known`; whole layers as one expression."""
    others = set(known) - set(names)
    layers: dict[str, list[str]] = {}
    alone = []
    for name in names:
        found = re.search(r"(\w+)\.(\d+)\.", name)
        if found and not any(found.group() in other for other in others):
            layers.setdefault(found.group(1), [])
            if found.group(2) not in layers[found.group(1)]:
                layers[found.group(1)].append(found.group(2))
        else:
            alone.append(f"^{re.escape(name)}$")
    return [rf"{prefix}\.({'|'.join(numbers)})\." for prefix, numbers in layers.items()] + alone
