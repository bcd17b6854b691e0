"""Stops a run at a NaN or infinite gradient, before a weight changes.

Clipping multiplies all gradients by `max_norm / norm`. A single NaN makes the norm NaN, and `0 * NaN` then reaches the
frozen weights. So the gradients that the optimizer is about to use are checked, after any clipping and any reduction
over processes. Sums of each gradient as it arrives tell which parameter was the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from wagle_trainer.engines.sharding import local_part


class LossCheck:
    """The losses of one optimizer step, which are looked at when its gradients are: one wait for the device, not two."""

    def __init__(self) -> None:
        self._losses: list[tuple[Tensor, Callable[[], str]]] = []

    def record(self, total: Tensor, explain: Callable[[], str]) -> None:
        """Keep a loss, (), without looking at it, and what to say if it is not finite."""
        self._losses.append((total.detach().float(), explain))

    @property
    def totals(self) -> list[Tensor]:
        """The losses of the step so far."""
        return [total for total, _ in self._losses]

    def check(self) -> None:
        """Raise FloatingPointError for the first loss of the step that is not finite, and forget them all."""
        losses, self._losses = self._losses, []
        for total, explain in losses:
            if not bool(torch.isfinite(total)):
                raise FloatingPointError(explain())

    def clear(self) -> None:
        """Forget the losses."""
        self._losses = []


class GradientCheck:
    """Finds non-finite gradients with one synchronisation of the device per optimizer step.

    Args:
        names: parameter -> its name, for the error.
        sharded: each process holds a part of the gradients, so that the processes have to agree.
        losses: looked at together with the gradients; their error comes first.
    """

    def __init__(self, names: dict[Tensor, str], *, sharded: bool = False, losses: LossCheck | None = None):
        self._names, self._sharded = names, sharded
        self.losses = losses or LossCheck()
        self._sums: dict[Tensor, Tensor] = {}  # of the gradients as they arrived

    def record(self, parameter: Tensor, total: Tensor) -> None:
        """Keep the sum of a gradient that has just arrived, float32 (), without looking at it."""
        self._sums[parameter] = total

    def check(self, parameters: Iterable[Tensor], step: int) -> None:
        """Raise FloatingPointError if a gradient is not finite.

        Args:
            parameters: what the optimizer is about to update.
            step: number of the optimizer step, for the error.

        Raises:
            FloatingPointError: names the parameter.
        """
        held = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        sums = {parameter: finite_sum(gradient) for parameter, gradient in held}
        recorded, self._sums = self._sums, {}
        if not self._any_not_finite([*sums.values(), *self.losses.totals]):
            self.losses.clear()
            return
        self.losses.check()
        culprit = _first_not_finite(recorded)
        if culprit is None and not _all_not_finite(sums):
            culprit = _first_not_finite(sums)
        where = f"The gradient of {self._names[culprit]!r}" if culprit in self._names else "A gradient"
        raise FloatingPointError(
            f"{where} is NaN or infinite at optimizer step {step}"
            + ("" if culprit is not None else " (on another process, or before it was clipped)")
            + ". Training stops before a weight changes; the last checkpoint is intact. A lower learning rate or float32 "
            "may help, or a look at the examples of this step."
        )

    def _any_not_finite(self, sums: list[Tensor]) -> bool:
        if not sums and not self._sharded:
            return False
        total = torch.stack([value.to(sums[0].device) for value in sums]).sum() if sums else torch.zeros(())
        failed = (~torch.isfinite(total)).float()
        if self._sharded:
            failed = failed.to(_communication_device(failed))
            dist.all_reduce(failed, op=dist.ReduceOp.MAX)
        return bool(failed)


def finite_sum(gradient: Tensor) -> Tensor:
    """A float32 () that is finite if and only if the gradient is: four times faster than a maximum on CPUs.

    Float32 gradients whose sum overflows count as infinite; their norm overflows as well.
    """
    return local_part(gradient).detach().sum(dtype=torch.float32)


def _first_not_finite(sums: dict[Tensor, Tensor]) -> Tensor | None:
    return next((parameter for parameter, total in sums.items() if not bool(torch.isfinite(total))), None)


def _all_not_finite(sums: dict[Tensor, Tensor]) -> bool:
    """Whether clipping has spread a NaN to all gradients."""
    return len(sums) > 1 and not any(bool(torch.isfinite(total)) for total in sums.values())


def _communication_device(tensor: Tensor) -> torch.device:
    """A device that the process group can send from; offloaded gradients lie elsewhere."""
    return torch.device("cuda") if dist.get_backend() == "nccl" else tensor.device
