"""What keeps the unselected weights as they are, bit for bit, through any optimizer's steps.

Three things move a weight: its gradient, its decay, and what an optimizer makes of a zero gradient (momentum from
before, quantised moments). Gradients are masked as they arrive, so that clipping and the logged norm see the selected
weights only. For `torch.optim.AdamW`, `Adam` and `SGD` a zero gradient and zero moments move nothing, so the decay is
all that is left: it is applied here, to the selected weights, with the arithmetic that the optimizer would have used.
Every other optimizer runs as it is, and the unselected weights get their values back after each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from wagle_trainer.engines.sharding import is_sharded, local_part, named_parameters, shard
from wagle_trainer.masking import bits
from wagle_trainer.masking.compact_adamw import CompactAdamW, refuse_compact_moments
from wagle_trainer.masking.mask import WeightMask


def innermost(optimizer: Any) -> Optimizer:
    """The `torch.optim` optimizer inside wrappers such as accelerate's: its step hooks fire under all of them."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class MaskedUpdates:
    """Attach a mask to a model and its optimizer; from then on only selected weights change.

    For one process, for DDP, and for models that FSDP2 shards; `masking.flat` has the engines that flatten parameters.

    Args:
        model: the unwrapped model; its parameters that are not in the mask are frozen as a whole.
        mask: fits the model (see `WeightMask.check`).
        optimizer: a `torch.optim.Optimizer`, possibly wrapped by accelerate.
        skip_frozen: compute no gradient for parameters of which no weight is selected. Not where an engine waits for
            all gradients (DDP, FSDP).

    Raises:
        MaskMismatchError: the mask does not fit the model.
        ValueError: the optimizer updates parameters that are not the model's.

    Example:
        >>> updates = MaskedUpdates(model, mask, optimizer)
        >>> loss.backward(); optimizer.step()
        >>> updates.detach()
    """

    def __init__(self, model: nn.Module, mask: WeightMask, optimizer: Any, *, skip_frozen: bool = False):
        self.mask = mask
        self.optimizer = innermost(optimizer)
        self.steps = 0
        self._handles: list[Any] = []
        self._packed: dict[Tensor, Tensor] = {}  # tensors of the optimizer that are partly selected -> their own bits
        self._frozen: list[nn.Parameter] = []  # parameters of which no weight is selected
        self._names: dict[Tensor, str] = {}
        self._skipped: list[nn.Parameter] = []
        self._decay: list[float] = []
        self._before: dict[Tensor, Tensor] = {}
        with torch.no_grad():
            self._attach(model, optimizer)
        if skip_frozen:
            self._skipped = self._frozen
            for parameter in self._skipped:
                parameter.requires_grad_(False)
        self._self_decay = _zero_gradient_moves_nothing(self.optimizer)
        if isinstance(self.optimizer, CompactAdamW):  # never touches an unselected weight
            self.optimizer.set_masks(self._packed)
        else:
            refuse_compact_moments(self.optimizer)
        self._handles.append(self.optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(self.optimizer.register_step_post_hook(self._after_step))
        if self._self_decay:
            self._clear_moments()

    def _attach(self, model: nn.Module, optimizer: Any) -> None:
        """Find out which bits belong to which tensor of the optimizer, and mask the gradients as they arrive."""
        self.mask.check(model)
        is_sharded(model.parameters())  # raises for layouts that are not supported
        for name, parameter in named_parameters(model).items():
            if not parameter.requires_grad:
                continue
            self._names[parameter] = name
            selected = self.mask.num_selected_in(name) if name in self.mask else 0
            if selected == 0:
                self._frozen.append(parameter)
            elif selected < parameter.numel():
                self._packed[parameter] = local_bits(self.mask, name, parameter)
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint(self._names):
            raise ValueError(
                "The optimizer holds none of the masked parameters: it was made for another model, or by an engine "
                "that flattens parameters, which weight masks do not support."
            )
        for tensor in self._packed:
            self._handles.append(tensor.register_post_accumulate_grad_hook(self._mask_gradient))
        for parameter in self._frozen:
            self._handles.append(parameter.register_post_accumulate_grad_hook(_zero_gradient))

    def mask_gradients(self) -> None:
        """Zero the gradients of unselected weights that no hook has seen: none on this engine."""

    def detach(self) -> None:
        """Remove all hooks; the next step is an unmasked one."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for parameter in self._skipped:
            parameter.requires_grad_(True)
        self._restore_decay()  # of a step that ended in an exception

    def _selected(self, parameter: Tensor) -> Tensor:
        """bool: which weights of what this process holds of a tensor may change."""
        return bits.unpack(self._packed[parameter], local_part(parameter).shape)

    @torch.no_grad()
    def _mask_gradient(self, parameter: Tensor) -> None:
        for selected, grad in bits.unpacked_with(self._packed[parameter], local_part(parameter.grad)):  # type: ignore[arg-type]
            bits.zero_unselected(grad, selected)

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        if self.steps == 0:
            self._assert_gradients_masked()
        for parameter in self._frozen:
            parameter.grad = None  # optimizers skip such a parameter: no decay, no moments
        self._restore_decay()
        if self._self_decay:
            self._decay = [group["weight_decay"] for group in self.optimizer.param_groups]
            for group in self.optimizer.param_groups:
                if group["weight_decay"] != 0:
                    self._apply_decay(group)
                    group["weight_decay"] = 0.0
        elif not isinstance(self.optimizer, CompactAdamW):
            self._before = {parameter: local_part(parameter).clone() for parameter in self._stepping()}

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        self._restore_decay()
        for parameter, before in self._before.items():
            for selected, weight, value in bits.unpacked_with(self._packed[parameter], local_part(parameter), before):
                torch.where(selected, weight, value, out=weight)
        self._before = {}
        self.steps += 1

    def _stepping(self) -> list[Tensor]:
        """The partly selected tensors that the step at hand updates: DeepSpeed steps group by group."""
        return [
            tensor for group in self.optimizer.param_groups for tensor in group["params"] if tensor in self._packed
        ]

    def _restore_decay(self) -> None:
        """The groups hold what the user set whenever no step is under way: checkpoints read it."""
        for group, decay in zip(self.optimizer.param_groups, self._decay, strict=False):
            group["weight_decay"] = decay
        self._decay = []

    def _apply_decay(self, group: Mapping[str, Any]) -> None:
        """Weight decay as `torch.optim` does it, with its rounding, on the selected weights of one group."""
        # Set by a gradient scaler that leaves it to the fused optimizer to unscale, and to skip the step.
        found_inf, scale = (getattr(self.optimizer, name, None) for name in ("found_inf", "grad_scale"))
        if found_inf is not None and bool(found_inf):
            return
        decoupled = isinstance(self.optimizer, AdamW) or group.get("decoupled_weight_decay", False)
        keep = 1 - group["lr"] * group["weight_decay"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            weight, grad = local_part(parameter), local_part(parameter.grad)
            factor = group["weight_decay"] * (1.0 if scale is None else float(scale))
            if parameter not in self._packed:
                weight.mul_(keep) if decoupled else grad.add_(weight, alpha=factor)
                continue
            for selected, w, g in bits.unpacked_with(self._packed[parameter], weight, grad):
                if decoupled:
                    bits.multiply_selected(w, selected, keep)
                else:
                    torch.where(selected, g.add(w, alpha=factor), g, out=g)

    def _clear_moments(self) -> None:
        """Moments from before the mask (an optimizer used earlier) move weights that have no gradient."""
        for parameter in self._packed:
            for value in self.optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    local_part(value).masked_fill_(~self._selected(parameter), 0)

    def _assert_gradients_masked(self) -> None:
        for parameter in (*self._stepping(), *self._frozen):
            if parameter.grad is None:
                continue
            grad = local_part(parameter.grad)
            outside = grad[~self._selected(parameter)] if parameter in self._packed else grad
            if bool(outside.any()):
                raise RuntimeError(
                    f"The gradient of {self._names[parameter]!r} reached the optimizer without its mask: this "
                    "training engine bypasses gradient hooks, and the run would have been silently unmasked. "
                    "Nothing has changed yet; see the README for the engines that are supported."
                )


def local_bits(mask: WeightMask, name: str, parameter: Tensor) -> Tensor:
    """Packed bits of what this process holds of a parameter, where it lies."""
    if isinstance(parameter, DTensor):
        return bits.pack(shard(mask[name].to(torch.uint8), parameter).bool())
    return mask.packed(name).to(parameter.device)


def _zero_gradient_moves_nothing(optimizer: Optimizer) -> bool:
    """Whether a weight with zero gradient, moments and decay keeps its bits. With `maximize`, SGD makes -0.0 of a zero
    gradient and then 0.0 of a weight that is -0.0; without `eps`, AdamW divides zero by zero."""
    return type(optimizer) in (AdamW, Adam, SGD) and not any(
        group["maximize"] or group.get("eps") == 0 for group in optimizer.param_groups
    )


def _zero_gradient(parameter: Tensor) -> None:
    parameter.grad.zero_()  # type: ignore[union-attr]
