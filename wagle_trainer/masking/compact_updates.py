"""`CompactUpdates`: training of the selected weights in little more memory than inference takes.

Each gradient gives up its selected entries as it arrives, and is freed. The optimizer holds flat float32 masters in
place of the model's parameters, so that any elementwise optimizer keeps moments for the selected weights only, and no
update is lost in the rounding of bfloat16. After each step, the masters are rounded and written into the model. Beside
weights and activations that takes 16 bytes per selected weight with AdamW (gradient, master, two moments), 4 bytes for
its position, and one dense gradient at a time. Weights that are not selected are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wagle_trainer.engines.sharding import device_of, gather, is_sharded, local_part, named_parameters
from wagle_trainer.masking.compact_shards import cut, load_shards, save_shard, selected_before
from wagle_trainer.masking.compact_weights import CompactWeights
from wagle_trainer.masking.gradient_check import GradientCheck, finite_sum
from wagle_trainer.masking.mask import WeightMask
from wagle_trainer.masking.masked_updates import innermost, local_bits
from wagle_trainer.masking.optimizer_modes import guard_modes
from wagle_trainer.masking.update_checks import (
    check_forward_changes_no_weight,
    check_selects_weights,
    check_steps_outside_backward,
)

MASTERS_KEY = "wagle_masters"  # in the optimizer's state dict; only where the model's format is not float32


class CompactUpdates:
    """Attach a mask to a model and its optimizer; the optimizer then updates compact float32 masters.

    Args:
        model: the unwrapped model.
        mask: fits the model (see `WeightMask.check`).
        optimizer: an elementwise `torch.optim.Optimizer`, possibly wrapped by accelerate.
        data_parallel: the `DistributedDataParallel` around the model, if several processes train it. Its own
            reduction of dense gradients is switched off; the compact ones are averaged instead.
        skip_frozen: compute no gradient for parameters without selected weights.
        saved_state: a file with the optimizer's state dict to resume from, read again here since an optimizer of
            16-bit parameters rounds what it loads; on sharded weights the checkpoint's folder (see `compact_shards`).

    Raises:
        MaskMismatchError: the mask does not fit the model.
        ValueError: as `MaskedUpdates`; or the state belongs to another mask.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: WeightMask,
        optimizer: Any,
        *,
        data_parallel: Any = None,
        skip_frozen: bool = False,
        saved_state: Path | None = None,
    ):
        check_selects_weights(mask)
        check_forward_changes_no_weight(model)
        mask.check(model)
        self.mask = mask
        self.optimizer = innermost(optimizer)
        check_steps_outside_backward(model, self.optimizer)
        self.steps = 0
        self.grad_norm: Tensor | None = None
        self._data_parallel = data_parallel
        self._reduced = False
        self._weights: dict[str, CompactWeights] = {}
        self._frozen: list[Tensor] = []
        self._handles: list[Any] = []
        for name, parameter in named_parameters(model).items():
            if not parameter.requires_grad:
                continue
            selected = mask.num_selected_in(name) if name in mask else 0
            if selected == 0:
                self._frozen.append(parameter)
            else:
                packed = None if selected == parameter.numel() else local_bits(mask, name, parameter)
                self._weights[name] = CompactWeights(parameter, packed)
        self._sharded = is_sharded(weights.parameter for weights in self._weights.values())
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint({weights.parameter for weights in self._weights.values()}):
            raise ValueError("The optimizer holds none of the selected parameters: it was made for another model.")
        self._start: list[Tensor] = []  # the masters as the step of a closure began
        names: dict[Tensor, str] = {weights.master: name for name, weights in self._weights.items()}
        self.gradient_check = GradientCheck(names, sharded=self._sharded)
        self._skipped = list(self._frozen) if skip_frozen else []
        for frozen in self._skipped:
            frozen.requires_grad_(False)
        self._swap_in(held, saved_state)
        self._add_hooks()

    def _add_hooks(self) -> None:
        for weights in self._weights.values():
            hook = partial(self._take_gradient, weights)
            self._handles.append(weights.parameter.register_post_accumulate_grad_hook(hook))
        for parameter in self._frozen:
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(_free_gradient))
        optimizer = self.optimizer
        self._handles += [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._add_masters),
            optimizer.register_load_state_dict_pre_hook(self._fit_state),
        ]
        self._end_modes = guard_modes(optimizer, self._written)
        if self._data_parallel is not None:
            # As in `no_sync`: else it would wait for dense gradients, and send them. Watched by
            # `tests/masking/test_compact_processes.py`.
            self._data_parallel.require_backward_grad_sync = False

    @torch.no_grad()
    def _take_gradient(self, weights: CompactWeights, _: Tensor) -> None:
        weights.take_gradient()
        if weights.master.grad is not None:
            self.gradient_check.record(weights.master, finite_sum(weights.master.grad))

    # Between the model's parameters and the masters

    def _swap_in(self, held: set[Tensor], saved_state: Path | None) -> None:
        """Put the masters in place of the parameters that the optimizer holds, with the state that it has.

        Frozen parameters get empty stand-ins, so that the numbering of a saved state stays.
        """
        state = self.optimizer.state_dict()
        if saved_state is not None and not self._sharded:
            state = torch.load(saved_state, map_location="cpu", weights_only=True)
        masters = {weights.parameter: weights.master for weights in self._weights.values()}
        self._stand_ins = {
            parameter: masters[parameter] if parameter in masters else _empty(parameter) for parameter in held
        }
        self._by_master = {weights.master: weights for weights in self._weights.values()}
        self.optimizer.state.clear()
        self._exchange(self._stand_ins)
        if saved_state is not None and self._sharded:
            state = self._from_shards(saved_state)
        if state["state"]:
            self.optimizer.load_state_dict(self._fit_state(self.optimizer, state))
            self._write()

    def _from_shards(self, checkpoint: Path) -> dict[str, Any]:
        """The state dict of the rows on this process, from the files of all processes that wrote a checkpoint."""
        shards = load_shards(checkpoint)
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        names: dict[Tensor, str] = {weights.master: name for name, weights in self._weights.items()}
        states: dict[int, dict[str, Any]] = {}
        masters: dict[int, Tensor] = {}
        for index, parameter in enumerate(held):
            if parameter not in names:
                continue
            name, length = names[parameter], parameter.numel()
            start = selected_before(self.mask, name, self._weights[name].parameter)
            parts = [shard["state"].get(index, {}) for shard in shards]
            states[index] = {
                key: cut([part[key] for part in parts], start, length) if isinstance(value, Tensor) else value
                for key, value in parts[0].items()
            }
            if index in shards[0][MASTERS_KEY]:
                masters[index] = cut([shard[MASTERS_KEY][index] for shard in shards], start, length)
        return {"state": states, "param_groups": shards[0]["param_groups"], MASTERS_KEY: masters}

    def save_shard(self, checkpoint: Path) -> None:
        """Write the optimizer's state for the rows on this process into a checkpoint. All processes call it.

        Args:
            checkpoint: folder of the checkpoint.
        """
        save_shard(self.optimizer.state_dict(), checkpoint)

    def _exchange(self, others: Mapping[Tensor, Tensor]) -> None:
        """Put other tensors in place of those that the optimizer holds; their state stays with their place."""
        for group in self.optimizer.param_groups:
            # The same list: some optimizers keep another reference to it.
            group["params"][:] = [others.get(parameter, parameter) for parameter in group["params"]]
        for parameter in list(self.optimizer.state):
            if parameter in others:
                self.optimizer.state[others[parameter]] = self.optimizer.state.pop(parameter)

    def _fit_state(self, _: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A loaded state dict, reduced to the selected weights; masters that were saved with it are taken over."""
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        states, masters = {}, state_dict.get(MASTERS_KEY, {})
        for index, state in state_dict["state"].items():
            weights = self._by_master.get(held[index]) if isinstance(index, int) and index < len(held) else None
            if weights is None:
                continue
            states[index] = {
                key: weights.fit(value) if isinstance(value, Tensor) else value for key, value in state.items()
            }
            if index in masters:
                weights.master.data.copy_(weights.fit(masters[index]))
        return {**state_dict, "state": states}

    def _add_masters(self, optimizer: Any, state_dict: dict[str, Any]) -> None:
        """Save the masters with the optimizer's state, where the model's weights are only their rounding."""
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state_dict[MASTERS_KEY] = {
            index: parameter.detach()
            for index, parameter in enumerate(held)
            if parameter in self._by_master and self._by_master[parameter].parameter.dtype != torch.float32
        }

    def master_weights(self) -> dict[str, Tensor]:
        """The float32 values of the selected weights, in the order of their flat positions.

        All processes call it where weights are sharded.

        Returns:
            name -> float32 (number of selected weights,), on the CPU.
        """
        local = {name: weights.values() for name, weights in self._weights.items()}
        return {name: _from_all(values) for name, values in local.items()} if self._sharded else local

    def mask_gradients(self) -> None:
        """Nothing is left to mask: hooks have taken the gradients."""

    def detach(self) -> None:
        """Give the optimizer its parameters back, and remove all hooks; the next step is an unmasked one."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for parameter in self._skipped:
            parameter.requires_grad_(True)
        self.zero_grad()
        self._exchange({stand_in: parameter for parameter, stand_in in self._stand_ins.items()})
        if self._data_parallel is not None:
            self._data_parallel.require_backward_grad_sync = True
        self._end_modes()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Within, the optimizer holds the masters; at the end, the model has their values."""
        outside = not self._handles
        if outside:
            self._exchange(self._stand_ins)
        yield
        self._write()
        if outside:
            self._exchange({stand_in: parameter for parameter, stand_in in self._stand_ins.items()})

    @torch.no_grad()
    def _write(self) -> None:
        for weights in self._weights.values():
            weights.write()

    # Steps

    def masters(self) -> list[Tensor]:
        """What the optimizer updates, float32 (number of selected weights,) each; `grad` is the compact gradient."""
        return [weights.master for weights in self._weights.values()]

    def zero_grad(self) -> None:
        """Drop the compact gradients, also those of a step that a gradient scaler has skipped."""
        self._reduced = False
        for master in self.masters():
            master.grad = None

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Average the compact gradients over the processes, once per step; only they are sent."""
        if self._data_parallel is None or self._reduced:
            return
        self._reduced = True
        masters = self.masters()
        arrived = torch.tensor([float(master.grad is not None) for master in masters], device=masters[0].device)
        flat = torch.cat([torch.zeros_like(m) if m.grad is None else m.grad for m in masters] + [arrived])
        dist.all_reduce(flat)
        flat[: -len(masters)].div_(dist.get_world_size())
        arrived_anywhere = flat[-len(masters) :].tolist()
        parts = flat[: -len(masters)].split([master.numel() for master in masters])
        for master, part, any_arrived in zip(masters, parts, arrived_anywhere, strict=True):
            master.grad = part if any_arrived else None

    def clip(self, clip_grad_norm_: Callable[..., Any], max_norm: float) -> Tensor:
        """Clip the compact gradients.

        Args:
            clip_grad_norm_: `torch.nn.utils.clip_grad_norm_`, or accelerate's, which unscales them first.
            max_norm: infinity to measure only.

        Returns:
            their norm before, ().
        """
        self.reduce_gradients()
        norm: Tensor = self._clip_shards(max_norm) if self._sharded else clip_grad_norm_(self.masters(), max_norm)
        self.grad_norm = norm
        return norm

    @torch.no_grad()
    def _clip_shards(self, max_norm: float) -> Tensor:
        """As `torch.nn.utils.clip_grad_norm_`, by the norm of all processes."""
        gradients = [master.grad for master in self.masters() if master.grad is not None]
        device = device_of(next(iter(self._weights.values())).parameter)  # offloaded masters lie elsewhere
        squares = nn.utils.get_total_norm(gradients).square().to(device)
        dist.all_reduce(squares)
        norm = squares.sqrt().to(self.masters()[0].device)
        nn.utils.clip_grads_with_norm_(self.masters(), max_norm, norm)
        return norm

    @torch.no_grad()
    def _before_step(self, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        closures = [value for value in (*args[1:], *(kwargs or {}).values()) if callable(value)]
        for weights in self._weights.values():
            weights.read()
        if not closures:
            self._look_at_gradients()
            return None
        self._start = [master.detach().clone() for master in self.masters()]
        replaced = [self._checked(value) if callable(value) else value for value in args[1:]]
        return (args[0], *replaced), {k: self._checked(v) if callable(v) else v for k, v in (kwargs or {}).items()}

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        self._write()
        self._start = []
        self.zero_grad()
        self.steps += 1

    def _checked(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure of an optimizer, which computes gradients within the step, at the masters' current values."""

        def checked() -> Any:
            self._write()
            try:
                loss = closure()
                self._look_at_gradients()
            except BaseException:
                for master, value in zip(self.masters(), self._start, strict=True):
                    master.detach().copy_(value)
                self._write()
                raise
            return loss

        return checked

    def _look_at_gradients(self) -> None:
        self.reduce_gradients()
        if all(master.grad is None for master in self.masters()):
            raise RuntimeError(
                "No gradient of a selected weight has reached the optimizer: this training engine bypasses gradient "
                "hooks. Nothing has changed yet; set compact_training=False."
            )
        if getattr(self.optimizer, "found_inf", None) is None:  # else a gradient scaler has looked, and skips the step
            self.gradient_check.check(self.masters(), self.steps + 1)


def master_weights(model: nn.Module, mask: WeightMask, updates: Any) -> dict[str, Tensor]:
    """The float32 values of the selected weights, from `updates` if they are compact, and from the model if not.

    Returns:
        name -> float32 (number of selected weights,) in the order of their flat positions, on the CPU.
    """
    if isinstance(updates, CompactUpdates):
        return updates.master_weights()
    found = {}
    for name, parameter in named_parameters(model).items():
        if name in mask:
            full = gather(local_part(parameter.detach()), parameter)
            found[name] = full[mask[name].to(full.device)].float().cpu()
    return found


def _empty(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(0, device=local_part(parameter).device))


def _from_all(values: Tensor) -> Tensor:
    """What the processes hold, one after the other."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return torch.cat(parts)


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None
