"""`CompactWeights`: float32 master values of the selected weights of one parameter, or of its rows on this process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wagle_trainer.engines.sharding import local_part
from wagle_trainer.masking import bits


class CompactWeights:
    """The selected weights of one parameter, as a flat float32 parameter that an optimizer can update.

    Args:
        parameter: contiguous, of any floating-point format; sharded by FSDP2 or not.
        packed: packed bits of the selected weights of its local part, uint8 (ceil(numel / 8),); None if all are selected.

    Attributes:
        master: float32 (number of selected weights,). `master.grad` sums the gradients that `take_gradient` takes.
        positions: ascending flat positions, int32 or int64 (number of selected weights,); None if all are selected.
    """

    def __init__(self, parameter: Tensor, packed: Tensor | None):
        self.parameter = parameter
        local = self.local
        self.positions = None if packed is None else bits.to_index(packed.to(local.device), local.numel())
        self.master = nn.Parameter(self.take(local).float().clone())

    @property
    def local(self) -> Tensor:
        """The parameter's local part, without gradients; shares its memory."""
        return local_part(self.parameter.detach())

    def take(self, tensor: Tensor) -> Tensor:
        """The selected entries of a tensor of the local part's shape, (number of selected weights,)."""
        flat = tensor.reshape(-1)
        return flat if self.positions is None else flat.index_select(0, self.positions)

    def take_gradient(self) -> None:
        """Add the selected entries of the parameter's gradient to the master's, and free the dense gradient."""
        gradient, self.parameter.grad = self.parameter.grad, None
        if gradient is None:
            return
        selected = self.take(local_part(gradient)).float()
        if self.master.grad is None:
            # A view would keep the dense gradient in memory, and might be written to by others.
            self.master.grad = selected.clone() if self.positions is None else selected
        else:
            self.master.grad.add_(selected)

    def read(self) -> None:
        """Follow weights that something else than `write` has changed, such as a loaded checkpoint."""
        current = self.take(self.local)
        rounded = self.master.detach().to(current.dtype)
        changed = bits.as_integers(rounded) != bits.as_integers(current)
        torch.where(changed, current.float(), self.master.detach(), out=self.master.detach())

    def write(self) -> None:
        """Round the master values to the parameter's format, and write them into it."""
        flat, rounded = self.local.view(-1), self.master.detach().to(self.parameter.dtype)
        if self.positions is None:
            flat.copy_(rounded)
        else:
            flat.index_copy_(0, self.positions.long(), rounded)

    def values(self) -> Tensor:
        """A copy of the float32 values whose rounding the parameter holds, on the CPU."""
        self.read()
        return self.master.detach().cpu().clone()

    def fit(self, value: Tensor) -> Tensor:
        """A state of the optimizer for the master.

        Args:
            value: of the parameter's shape, as a dense optimizer saved it, or already compact.

        Raises:
            ValueError: it belongs to another mask.
        """
        value = local_part(value)
        if value.dim() == 0 or value.shape == self.master.shape:
            return value
        if value.shape == self.local.shape:
            index = None if self.positions is None else self.positions.to(value.device)
            return value.reshape(-1) if index is None else value.reshape(-1).index_select(0, index)
        raise ValueError(
            f"The optimizer's state has a tensor of shape {tuple(value.shape)} for a parameter of shape "
            f"{tuple(self.parameter.shape)}, and the mask selects {self.master.numel():,} of its weights: it belongs to "
            "another mask or another optimizer. Resume with those of the run that saved it."
        )
