"""`HostSums`: sums of gradients in host memory, which take each gradient off the device as it arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from wagle_trainer.utils.free_memory import free_memory

# Elements that are copied at a time. Two buffers of so many are all the pinned memory that is needed.
CHUNK = 2**24
# Share of the free memory that sums may take; the rest is for activations.
ROOM = 0.7


def fits_on_device(parameters: Iterable[Tensor], dtype: torch.dtype, number: int) -> bool:
    """Whether the memory of a GPU holds so many sums for each parameter; always so on the CPU.

    Args:
        parameters: local parts.
        dtype: of the sums.
        number: of sums for each parameter.
    """
    needed: dict[torch.device, int] = {}
    for parameter in parameters:
        if parameter.device.type == "cuda":
            needed[parameter.device] = needed.get(parameter.device, 0) + number * parameter.numel() * dtype.itemsize
    return all(size <= ROOM * free_memory(device) for device, size in needed.items())


class HostSums:
    """Adds gradients to sums in host memory, while the backward pass goes on.

    A gradient on a GPU is copied through two pinned buffers on a stream of its own; a thread adds each chunk to its sum.
    So the device holds the gradient that the backward pass makes, and those whose copies are under way: at most the
    number of buffers. Gradients are added in the order of their arrival, one by one: the sums are bitwise those of any
    other way. Call `finish` before they are read.

    Args:
        device: where the gradients are, or the first of them.
        chunk: elements per buffer.
        staged: copy through buffers; by default if the gradients are not in host memory.

    Example:
        >>> total = torch.zeros(2)
        >>> sums = HostSums(torch.device("cpu"))
        >>> sums.add(torch.ones(2), total)
        >>> sums.finish()
        >>> total
        tensor([1., 1.])
    """

    def __init__(self, device: torch.device, *, chunk: int = CHUNK, staged: bool | None = None):
        self._staged = device.type != "cpu" if staged is None else staged
        self._chunk = chunk
        self._streams: dict[torch.device, torch.cuda.Stream] = {}  # a model may lie on several devices
        self._free: deque[Tensor] = deque()
        self._pending: deque[Future[Tensor]] = deque()
        self._thread = ThreadPoolExecutor(1) if self._staged else None

    @torch.no_grad()
    def add(self, gradient: Tensor, total: Tensor | None, squares: Tensor | None = None) -> None:
        """Add a gradient to a sum, and its squares to another.

        Args:
            gradient: on the device, of any shape.
            total, squares: contiguous host tensors of the same shape; None if not wanted.
        """
        if self._thread is None:
            _add(gradient, total, squares)
            return
        sums = [None if tensor is None else tensor.view(-1) for tensor in (total, squares)]
        flat = gradient.detach().reshape(-1)
        stream = self._stream_of(flat.device)
        for start in range(0, len(flat), self._chunk):
            part = flat[start : start + self._chunk]
            buffer, copied = self._copy(part, stream)
            parts = [None if values is None else values[start : start + self._chunk] for values in sums]
            self._pending.append(self._thread.submit(_add_buffer, buffer, len(part), copied, *parts))
        if stream is not None:
            flat.record_stream(stream)  # else its memory would be used again while it is copied

    def _stream_of(self, device: torch.device) -> torch.cuda.Stream | None:
        """The stream of the copies, after all work on the device that is under way; None on the CPU."""
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        return stream

    def _copy(self, part: Tensor, stream: torch.cuda.Stream | None) -> tuple[Tensor, Any]:
        """Start to copy a chunk into a free buffer; the buffer, and the event that says that it is there."""
        buffer = self._buffer(part)
        if stream is None:
            buffer[: len(part)].copy_(part)
            return buffer, None
        with torch.cuda.stream(stream):
            buffer[: len(part)].copy_(part, non_blocking=True)
            return buffer, stream.record_event()

    def _buffer(self, part: Tensor) -> Tensor:
        """A buffer that no copy is using, of the chunk's format."""
        if len(self._pending) >= 2:
            self._free.append(self._pending.popleft().result())
        buffer = self._free.popleft() if self._free else None
        if buffer is None or buffer.dtype != part.dtype:
            buffer = torch.empty(self._chunk, dtype=part.dtype, pin_memory=part.is_cuda)
        return buffer

    def finish(self) -> None:
        """Wait until every gradient is in its sum.

        Raises:
            Exception: whatever went wrong in the thread.
        """
        while self._pending:
            self._free.append(self._pending.popleft().result())

    def close(self) -> None:
        """End the thread and let the buffers go."""
        if self._thread is not None:
            self._thread.shutdown()
        self._pending.clear()
        self._free.clear()


def _add(gradient: Tensor, total: Tensor | None, squares: Tensor | None) -> None:
    if total is not None:
        total.add_(gradient.to(total.device))
    if squares is not None:
        values = gradient.to(squares.device, squares.dtype)
        squares.addcmul_(values, values)


@torch.no_grad()  # which counts for one thread only
def _add_buffer(buffer: Tensor, length: int, copied: Any, total: Tensor | None, squares: Tensor | None) -> Tensor:
    if copied is not None:
        copied.synchronize()
    _add(buffer[:length], total, squares)
    return buffer
