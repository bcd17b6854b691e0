"""`CompactAdamW`: AdamW with moments for the selected weights only.

It gathers the selected weights and their gradients, updates them with torch's AdamW, and scatters the weights back.
AdamW is elementwise, so the trajectory equals that of dense AdamW with masked gradients and masked decay. Unselected
weights are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from wagle_trainer.masking import bits

# Weights that are updated together: few calls, and little memory for what is gathered. Multiples of 8.
CPU_CHUNK = 2**19
DEVICE_CHUNK = 2**24
MOMENTS = ("exp_avg", "exp_avg_sq")


class CompactAdamW(AdamW):
    """`torch.optim.AdamW` with moments of shape (number of selected weights,); see there for the arguments.

    The mask may be set after the optimizer is created and its state is loaded; `MaskedUpdates` calls `set_masks`. The
    optimizer keeps the positions of the selected weights, four bytes each, and does not save them.

    Raises:
        ValueError: `amsgrad` or `maximize` is set.

    Example:
        >>> optimizer = CompactAdamW(model.parameters(), lr=1e-5)
        >>> MaskedUpdates(model, mask, optimizer)
    """

    # Parameter -> positions of the selected weights in each of its chunks; None until masks are set. A class attribute,
    # since copying skips __init__.
    _positions: dict[Tensor, list[Tensor]] | None = None

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach, fused=fused
        )
        self._check_options()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._check_options()
        self._positions = None  # a loaded state belongs to the masks that are set after it

    def _check_options(self) -> None:
        for group in self.param_groups:
            for name in ("amsgrad", "maximize", "capturable", "differentiable"):
                if group[name]:
                    raise ValueError(f"CompactAdamW does not support {name}: use torch.optim.AdamW instead.")

    def set_masks(self, packed: Mapping[Any, Tensor]) -> None:
        """Set the selected weights, and reduce loaded moments of a plain AdamW to them.

        Args:
            packed: parameter -> packed bits, uint8 (ceil(numel / 8),) (see `masking.bits`), of the partly selected
                parameters; all weights of other parameters are updated.

        Raises:
            ValueError: the optimizer holds moments of other weights than these, or a parameter is sharded or not contiguous.
        """
        before, self._positions = self._positions or {}, None
        positions: dict[Tensor, list[Tensor]] = {}
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if isinstance(parameter, DTensor) or not parameter.is_contiguous():
                raise ValueError(
                    "CompactAdamW needs contiguous parameters that are not sharded; one of shape "
                    f"{tuple(parameter.shape)} is not. Use torch.optim.AdamW instead."
                )
            if parameter in packed:
                parts = zip(_chunks(parameter), _chunks(packed[parameter], bits=True), strict=True)
                positions[parameter] = [bits.unpack(b, c.shape).nonzero().view(-1).int() for c, b in parts]
            if self.state.get(parameter):
                self._fit_moments(parameter, positions.get(parameter), before.get(parameter))
        self._positions = positions

    def _fit_moments(self, parameter: Tensor, index: list[Tensor] | None, before: list[Tensor] | None) -> None:
        state = self.state[parameter]
        shape = parameter.shape if index is None else torch.Size([sum(map(len, index))])
        for name in MOMENTS:
            if index is not None and state[name].shape == parameter.shape:
                parts = zip(_chunks(state[name]), index, strict=True)
                state[name] = torch.cat([_take(moments, chosen) for moments, chosen in parts])
            elif state[name].shape != shape or (index and before and not all(map(torch.equal, index, before))):
                raise ValueError(
                    f"The optimizer holds moments of {state[name].numel():,} weights of a parameter of shape "
                    f"{tuple(parameter.shape)}, but the mask selects {shape.numel():,}, or other ones: its state "
                    "belongs to another mask. Use the mask of the run that saved the state, or a new optimizer."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the selected weights by one step of AdamW.

        Raises:
            RuntimeError: no masks were set, or a state was loaded since.
        """
        if self._positions is None:
            raise RuntimeError(
                "CompactAdamW does not know which weights are selected: attach a mask before the first step and after "
                "load_state_dict, by MaskedUpdates(model, mask, optimizer) or optimizer.set_masks(...)."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _run(self._update, [(g, batch) for g in self.param_groups for batch in _batches(self._pieces(g))])
        return loss

    def _pieces(self, group: dict[str, Any]) -> Iterator[_Piece]:
        assert self._positions is not None
        for parameter in group["params"]:
            index = self._positions.get(parameter)
            selected = parameter.numel() if index is None else sum(map(len, index))
            if parameter.grad is None or selected == 0:
                continue
            state = self.state[parameter]
            if not state:
                device = parameter.device if group["fused"] else "cpu"  # as torch.optim.AdamW has it
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                for name in MOMENTS:
                    state[name] = torch.zeros_like(parameter) if index is None else parameter.new_zeros(selected)
            step, start = state["step"], 0
            for i, (weight, gradient) in enumerate(zip(_chunks(parameter), _chunks(parameter.grad), strict=True)):
                chosen = None if index is None else index[i]
                end = start + len(weight if chosen is None else chosen)
                if end > start:
                    first, second = (state[name].view(-1)[start:end] for name in MOMENTS)
                    yield _Piece(weight, gradient, first, second, step, chosen)
                    step = step.clone()  # each update counts its own one up
                start = end

    @torch.no_grad()
    def _update(self, group: dict[str, Any], batch: list[_Piece]) -> None:
        weights = [_take(piece.weight, piece.positions) for piece in batch]
        adamw(
            weights,
            [_take(piece.gradient, piece.positions) for piece in batch],
            [piece.exp_avg for piece in batch],
            [piece.exp_avg_sq for piece in batch],
            [],
            [piece.step for piece in batch],
            foreach=group["foreach"],
            fused=group["fused"],
            grad_scale=getattr(self, "grad_scale", None),  # set by GradScaler when the optimizer is fused
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for piece, weight in zip(batch, weights, strict=True):
            if piece.positions is not None:
                piece.weight.scatter_(0, piece.positions, weight)


def refuse_compact_moments(optimizer: Optimizer) -> None:
    """Raise ValueError if a plain AdamW holds the state of a `CompactAdamW`."""
    for parameter, state in optimizer.state.items():
        if type(optimizer) is AdamW and "exp_avg" in state and state["exp_avg"].numel() < parameter.numel():
            raise ValueError(
                "The optimizer's state was saved by a compact optimizer: it has moments for the selected weights only. "
                "Resume with compact_optimizer=True, or, without WagleTrainer, with CompactAdamW."
            )


class _Piece(NamedTuple):
    """A flat chunk of a parameter, with moments and int32 positions of its selected weights (None: all)."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    positions: Tensor | None


def _chunks(tensor: Tensor, *, bits: bool = False) -> tuple[Tensor, ...]:
    size = CPU_CHUNK if tensor.device.type == "cpu" else DEVICE_CHUNK
    return tensor.detach().reshape(-1).split(size // 8 if bits else size)


def _take(flat: Tensor, index: Tensor | None) -> Tensor:
    return flat if index is None else flat.index_select(0, index)


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Group pieces of one device and dtype, up to a chunk's number of weights."""
    batch: list[_Piece] = []
    size, kind = 0, None
    for piece in pieces:
        limit = CPU_CHUNK if piece.weight.device.type == "cpu" else DEVICE_CHUNK
        if batch and (size + len(piece.weight) > limit or kind != (piece.weight.device, piece.weight.dtype)):
            yield batch
            batch, size = [], 0
        kind = (piece.weight.device, piece.weight.dtype)
        batch.append(piece)
        size += len(piece.weight)
    if batch:
        yield batch


def _run(update: Callable[..., None], batches: list[tuple[dict[str, Any], list[_Piece]]]) -> None:
    """Update all batches; on the CPU in torch's number of threads, since gather and scatter use only one."""
    on_cpu = all(batch[0].weight.device.type == "cpu" for _, batch in batches)
    threads = torch.get_num_threads()
    if not on_cpu or min(threads, len(batches)) < 2:
        for arguments in batches:
            update(*arguments)
        return
    try:
        with ThreadPoolExecutor(min(threads, len(batches)), initializer=_use_one_thread) as pool:
            list(pool.map(lambda arguments: update(*arguments), batches))
    finally:
        torch.set_num_threads(threads)  # MKL has one number for all threads


def _use_one_thread() -> None:
    """Keep torch from starting further threads within this one."""
    torch.get_num_threads()  # a thread keeps its own number only after reading it once
    torch.set_num_threads(1)
