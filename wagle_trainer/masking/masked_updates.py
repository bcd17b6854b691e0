"""`MaskedUpdates`: unselected weights stay bitwise identical through the steps of any optimizer.

Three things move a weight: its gradient, its decay, and what an optimizer makes of a zero gradient (earlier momentum,
quantised moments). Gradients are masked as they arrive, so that clipping and the logged norm see only selected weights.
Under `torch.optim.AdamW`, `Adam` and `SGD`, zero gradients and zero moments move no weight. There only the decay is
left: it is applied here, to the selected weights, with the arithmetic of the optimizer. Under every other optimizer,
and under these where their arithmetic does not keep a weight (see `_zero_gradient_moves_nothing`), the frozen weights
are copied before each step and restored after it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from wagle_trainer.engines.sharding import is_sharded, local_part, named_parameters, shard
from wagle_trainer.masking import bits
from wagle_trainer.masking.compact_adamw import CompactAdamW, refuse_compact_moments
from wagle_trainer.masking.gradient_check import GradientCheck, finite_sum
from wagle_trainer.masking.mask import WeightMask
from wagle_trainer.masking.optimizer_modes import guard_modes
from wagle_trainer.masking.update_checks import (
    check_forward_changes_no_weight,
    check_selects_weights,
    check_steps_outside_backward,
)

logger = logging.getLogger(__name__)
# Packages whose optimizers skip parameters without a gradient (LBFGS does not); of others, nothing is known.
SKIP_MISSING_GRADIENTS = ("torch.optim.", "transformers.", "bitsandbytes.", "torchao.", "deepspeed.")


def innermost(optimizer: Any) -> Optimizer:
    """The `torch.optim` optimizer inside wrappers such as accelerate's; its step hooks fire under all of them."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class MaskedUpdates:
    """Attach a mask to a model and its optimizer; from then on only selected weights change.

    For one process, DDP, and models that FSDP2 shards; `masking.flattened_updates` has the engines that flatten
    parameters.

    Args:
        model: the unwrapped model; all parameters outside the mask are frozen.
        mask: fits the model (see `WeightMask.check`).
        optimizer: a `torch.optim.Optimizer`, possibly wrapped by accelerate.
        skip_frozen: compute no gradient for parameters without selected weights. Not where an engine waits for all
            gradients (DDP, FSDP).

    Raises:
        MaskMismatchError: the mask does not fit the model.
        ValueError: the mask selects nothing; the optimizer holds none of the model's parameters, or updates weights
            within the backward pass; an embedding changes its weights in the forward pass.

    Example:
        >>> updates = MaskedUpdates(model, mask, optimizer)
        >>> loss.backward(); optimizer.step()
        >>> updates.detach()
    """

    def __init__(self, model: nn.Module, mask: WeightMask, optimizer: Any, *, skip_frozen: bool = False):
        check_selects_weights(mask)
        check_forward_changes_no_weight(model)
        self.mask = mask
        self.optimizer = innermost(optimizer)
        check_steps_outside_backward(model, self.optimizer)
        self.steps = 0
        self._handles: list[Any] = []
        self._packed: dict[Tensor, Tensor] = {}  # partly selected tensors of the optimizer -> their local bits
        self._frozen: list[Tensor] = []  # parameters without selected weights
        self._names: dict[Tensor, str] = {}
        self._skipped: list[Tensor] = []
        self._decay: list[float] = []
        self._before: dict[Tensor, Tensor] = {}
        self._start: dict[Tensor, Tensor] = {}  # all weights as the step of a closure began
        self._self_decay = False
        with torch.no_grad():
            self._attach(model, optimizer)
        if skip_frozen:
            self._skipped = list(self._frozen)
            for parameter in self._skipped:
                parameter.requires_grad_(False)
        self.gradient_check = GradientCheck(self._names, sharded=self._sharded())
        if isinstance(self.optimizer, CompactAdamW):  # never touches an unselected weight
            self.optimizer.set_masks(self._packed)
        else:
            refuse_compact_moments(self.optimizer)
        for group in self.optimizer.param_groups:
            if group.get("eps") and _eps_vanishes(group):
                logger.warning(
                    f"eps={group['eps']} is zero in the format of the weights, so {type(self.optimizer).__name__} may "
                    "divide zero by zero and make NaNs of selected weights: use a fused implementation, a larger eps, or "
                    "float32."
                )
        self._handles.append(self.optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(self.optimizer.register_step_post_hook(self._after_step))
        self._end_modes = guard_modes(self.optimizer, self._frozen_kept)

    def _attach(self, model: nn.Module, optimizer: Any) -> None:
        """Assign bits to the tensors of the optimizer, and mask the gradients as they arrive."""
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
        if set(self._held()).isdisjoint(self._names):
            raise ValueError(
                "The optimizer holds none of the masked parameters: it was made for another model, or by an engine "
                "that flattens parameters, which weight masks do not support."
            )
        hooks: dict[Tensor, Callable[[Tensor], None]] = dict.fromkeys(self._names, self._record_gradient)
        hooks |= dict.fromkeys(self._packed, self._mask_gradient) | dict.fromkeys(self._frozen, _zero_gradient)
        for tensor, hook in hooks.items():
            self._handles.append(tensor.register_post_accumulate_grad_hook(hook))

    def mask_gradients(self) -> None:
        """Zero the gradients of unselected weights that no hook has seen: none on this engine."""

    def leave_out(self, names: Collection[str]) -> None:
        """Keep parameters as they are that no loss depends on: without a gradient, the optimizer skips them.

        Args:
            names: of the parameters.
        """

    def detach(self) -> None:
        """Remove all hooks; the next step is an unmasked one."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for parameter in self._skipped:
            parameter.requires_grad_(True)
        self._restore_decay()  # of a step that ended in an exception
        self._end_modes()

    # Gradients

    def _selected(self, parameter: Tensor) -> Tensor:
        """Selected weights of the local part of a tensor, bool."""
        return bits.unpack(self._packed[parameter], local_part(parameter).shape)

    @torch.no_grad()
    def _mask_gradient(self, parameter: Tensor) -> None:
        total = torch.zeros((), device=parameter.device)
        for selected, grad in bits.unpacked_with(self._packed[parameter], local_part(parameter.grad)):  # type: ignore[arg-type]
            bits.zero_unselected(grad, selected)
            total = total + finite_sum(grad)
        self.gradient_check.record(parameter, total)

    @torch.no_grad()
    def _record_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.gradient_check.record(parameter, finite_sum(parameter.grad))

    # Steps

    @torch.no_grad()
    def _before_step(self, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self._freeze_newcomers()
        self._restore_decay()
        closures = [value for value in (*args[1:], *(kwargs or {}).values()) if callable(value)]
        if not closures:
            self._look_at_gradients()
        else:
            self._start = {parameter: local_part(parameter).clone() for parameter in self._held()}
        if isinstance(self.optimizer, CompactAdamW):
            pass
        elif not closures and _zero_gradient_moves_nothing(self.optimizer):
            self._decay_selected()
        else:
            self._self_decay = False
            self._before = self._copies(frozen=bool(closures) or not _skips_missing_gradients(self.optimizer))
        if not closures:
            return None
        replaced = [self._checked(value) if callable(value) else value for value in args]
        return (args[0], *replaced[1:]), {k: self._checked(v) if callable(v) else v for k, v in (kwargs or {}).items()}

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        self._restore_decay()
        self._restore(self._before)
        self._before, self._start = {}, {}
        self.steps += 1

    def _checked(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure of an optimizer; it computes gradients within the step."""

        def checked() -> Any:
            try:
                loss = closure()
                self._look_at_gradients()
            except BaseException:
                for parameter, value in self._start.items():  # the optimizer may have moved it since the step began
                    local_part(parameter).detach().copy_(value)
                raise
            return loss

        return checked

    def _look_at_gradients(self) -> None:
        if getattr(self.optimizer, "found_inf", None) is None:  # else a gradient scaler has looked, and skips the step
            self.gradient_check.check(self._held(), self.steps + 1)
        if self.steps == 0:
            self._assert_gradients_masked()
        for parameter in self._frozen:
            parameter.grad = None  # optimizers skip such a parameter: no decay, no moments

    def _freeze_newcomers(self) -> None:
        """Freeze parameters that could not be trained when the mask was attached, and that something unfroze since."""
        for parameter in self._held():
            if parameter.requires_grad and parameter not in self._names:
                logger.warning(
                    f"A parameter of shape {tuple(parameter.shape)} was unfrozen, or added to the optimizer, after the "
                    "weight mask was attached. The mask does not select it, so it stays as it is."
                )
                self._names[parameter] = f"a parameter of shape {tuple(parameter.shape)}"
                self._frozen.append(parameter)
                self._handles.append(parameter.register_post_accumulate_grad_hook(_zero_gradient))
                parameter.grad = None

    # Frozen weights

    def _held(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _stepping(self) -> list[Tensor]:
        """The partly selected tensors that the current step updates: DeepSpeed steps group by group."""
        return [tensor for tensor in self._held() if tensor in self._packed]

    def _sharded(self) -> bool:
        return any(isinstance(parameter, DTensor) for parameter in self._names)

    def _copies(self, *, frozen: bool) -> dict[Tensor, Tensor]:
        """Copies of the partly selected tensors, and of the frozen ones if requested."""
        known = set(self._names) - set(self._frozen)
        frozen_too = [parameter for parameter in self._held() if parameter not in known] if frozen else []
        return {parameter: local_part(parameter).clone() for parameter in (*self._stepping(), *frozen_too)}

    @torch.no_grad()
    def _restore(self, copies: Mapping[Tensor, Tensor]) -> None:
        """Put the copied values of all frozen weights back."""
        for parameter, copy in copies.items():
            if parameter not in self._packed:
                local_part(parameter).copy_(copy)
                continue
            for selected, weight, value in bits.unpacked_with(self._packed[parameter], local_part(parameter), copy):
                torch.where(selected, weight, value, out=weight)

    @contextmanager
    def _frozen_kept(self) -> Iterator[None]:
        """Restore the frozen weights after something else has moved all of them."""
        with torch.no_grad():
            copies = self._copies(frozen=True)
            yield
            self._restore(copies)

    # Weight decay

    def _decay_selected(self) -> None:
        """Decay the selected weights, and keep the optimizer from decaying all."""
        if not self._self_decay:
            self._clear_moments()
            self._self_decay = True
        self._decay = [group["weight_decay"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            if group["weight_decay"] != 0:
                self._apply_decay(group)
                group["weight_decay"] = 0.0

    def _restore_decay(self) -> None:
        """Restore the user's settings whenever no step is running: checkpoints read them."""
        for group, decay in zip(self.optimizer.param_groups, self._decay, strict=False):
            group["weight_decay"] = decay
        self._decay = []

    def _apply_decay(self, group: Mapping[str, Any]) -> None:
        """Weight decay of the selected weights of one group, with the arithmetic of `torch.optim`."""
        # Set by a gradient scaler that lets the fused optimizer unscale, and skip the step.
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
        """Zero the moments of frozen weights from before the mask; they would move weights without a gradient."""
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
            # Clipping by a NaN norm makes NaNs of zeros, in a step that a gradient scaler skips.
            if bool((outside.nan_to_num(nan=0.0) != 0).any()):
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
    """Whether a weight with zero gradient, moments and decay keeps its bits.

    Not with `maximize`: SGD makes -0.0 of a zero gradient, and then 0.0 of a weight that is -0.0. Not if `eps` is zero in
    the format of the weights, as 1e-8 is in float16: AdamW divides zero by zero. Not if the learning rate is not finite.
    Not while denormal numbers are flushed to zero.
    """
    return (
        type(optimizer) in (AdamW, Adam, SGD)
        and not any(
            group["maximize"] or not math.isfinite(group["lr"]) or _eps_vanishes(group)
            for group in optimizer.param_groups
        )
        and not _flushes_denormals()
    )


def _eps_vanishes(group: Mapping[str, Any]) -> bool:
    eps = group.get("eps")
    if not isinstance(eps, float | int):  # Adafactor has two, for other purposes
        return False
    # The fused kernel computes in float32.
    dtypes = {torch.float32} if group.get("fused") else {parameter.dtype for parameter in group["params"]}
    return any(float(torch.tensor(eps, dtype=dtype)) == 0 for dtype in dtypes)


def _flushes_denormals() -> bool:
    """Whether `torch.set_flush_denormal` is on: then a number times one may be zero."""
    return bool(torch.tensor(1e-40) * 1 == 0)


def _skips_missing_gradients(optimizer: Optimizer) -> bool:
    known = f"{type(optimizer).__module__}.".startswith(SKIP_MISSING_GRADIENTS)
    return known and not isinstance(optimizer, LBFGS)


def _zero_gradient(parameter: Tensor) -> None:
    parameter.grad.zero_()  # type: ignore[union-attr]
