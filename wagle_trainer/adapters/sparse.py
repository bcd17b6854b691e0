"""`SparseValues`: new values at some positions of one tensor."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wagle_trainer.masking import bits
from wagle_trainer.masking.bits import as_integers

INT32_MAX = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class SparseValues:
    """New values at chosen positions of a tensor, in the order of the flat positions.

    Attributes:
        shape: of the full tensor.
        positions: uint8 (ceil(numel / 8),): packed bits (see `masking.bits`), or int32 / int64 (number of values,):
            ascending flat positions; whichever takes less memory (see `positions_layout`).
        values: (number of values,), of the tensor's dtype.
    """

    shape: tuple[int, ...]
    positions: Tensor
    values: Tensor

    @classmethod
    def from_mask(cls, tensor: Tensor, packed: Tensor) -> SparseValues:
        """The values of `tensor` where the packed bits are set; in new memory.

        Args:
            tensor: the values, of any shape.
            packed: uint8 (ceil(numel / 8),), one bit for each weight.
        """
        shape, numel = tuple(tensor.shape), tensor.numel()
        dtype, size = positions_layout(numel, bits.count(packed))
        positions = packed.to(tensor.device)
        if dtype != torch.uint8:
            positions = torch.empty(size, dtype=dtype, device=tensor.device)
            for index, part in _stretches(packed.to(tensor.device), numel):
                positions[part] = index.to(dtype)
        return cls(shape, positions, take(tensor, positions))

    @classmethod
    def from_index(cls, shape: tuple[int, ...], index: Tensor, values: Tensor) -> SparseValues:
        """From ascending flat positions, int64 (number of values,), and the values at them.

        Args:
            shape: of the full tensor.
            index: int64 (number of values,), ascending flat positions.
            values: (number of values,).
        """
        numel = math.prod(shape)
        dtype, _ = positions_layout(numel, len(index))
        if dtype != torch.uint8:
            return cls(tuple(shape), index.to(dtype), values)
        return cls(tuple(shape), bits.from_index(index, numel), values)

    @property
    def numel(self) -> int:
        """Number of entries of the full tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that positions and values take."""
        return self.positions.nbytes + self.values.nbytes

    @property
    def index(self) -> Tensor:
        """Ascending flat positions, int64 (number of values,)."""
        if self.positions.dtype != torch.uint8:
            return self.positions.long()
        return torch.cat([index for index, _ in _stretches(self.positions, self.numel)])

    @property
    def packed(self) -> Tensor:
        """Packed bits, uint8 (ceil(numel / 8),), set where there is a value."""
        if self.positions.dtype == torch.uint8:
            return self.positions
        return bits.from_index(self.positions, self.numel)

    def is_valid(self) -> bool:
        """Whether there is one position for each value, within the tensor, and ascending."""
        if self.positions.dtype == torch.uint8:
            last = int(self.positions[-1]) if len(self.positions) else 0
            behind = last >> ((self.numel - 1) % 8 + 1)  # the spare bits after the last entry
            return behind == 0 and bits.count(self.positions) == len(self.values)
        inside = not len(self.positions) or (int(self.positions[0]) >= 0 and int(self.positions[-1]) < self.numel)
        return inside and bool((self.positions[1:] > self.positions[:-1]).all())

    def digest(self) -> str:
        """SHA-256 over shape, dtype, positions and values."""
        sha = hashlib.sha256(f"{self.shape}:{self.values.dtype}:".encode())
        for tensor in (self.positions, self.values):
            _update(sha, tensor)
        return sha.hexdigest()


def positions_layout(numel: int, selected: int) -> tuple[torch.dtype, int]:
    """How the positions of `selected` out of `numel` entries are kept: dtype and length of the tensor."""
    index_dtype = torch.int32 if numel - 1 <= INT32_MAX else torch.int64
    if selected * index_dtype.itemsize < bits.packed_size(numel):
        return index_dtype, selected
    return torch.uint8, bits.packed_size(numel)


def _stretches(positions: Tensor, numel: int) -> Iterator[tuple[Tensor, slice]]:
    """Positions a stretch at a time, so that little memory is needed for them: (int64 flat positions, their place among
    the values), ..."""
    size = bits.chunk_of(positions)
    if positions.dtype != torch.uint8:
        for start in range(0, max(len(positions), 1), size):
            index = positions[start : start + size].long()
            yield index, slice(start, start + len(index))
        return
    done = 0
    for start in range(0, max(numel, 1), size):
        stop = min(start + size, numel)
        index = bits.unpack(positions[start // 8 : -(-stop // 8)], (stop - start,)).nonzero().view(-1).add_(start)
        yield index, slice(done, done + len(index))
        done += len(index)


def take(tensor: Tensor, positions: Tensor) -> Tensor:
    """The values of `tensor` at the positions, (number of values,)."""
    flat = as_integers(tensor.detach().reshape(-1))
    return torch.cat([flat[index] for index, _ in _stretches(positions, tensor.numel())]).view(tensor.dtype)


def put(tensor: Tensor, positions: Tensor, values: Tensor) -> None:
    """Write the values into `tensor` at the positions, in place."""
    with _flat(tensor) as flat:
        for index, part in _stretches(positions, tensor.numel()):
            flat[index] = as_integers(values[part])


def swap(tensor: Tensor, positions: Tensor, values: Tensor) -> None:
    """Exchange `values` with those of `tensor` at the positions, both in place."""
    with _flat(tensor) as flat:
        for index, part in _stretches(positions, tensor.numel()):
            before = flat[index]
            flat[index] = as_integers(values[part])
            as_integers(values)[part] = before


@contextmanager
def _flat(tensor: Tensor) -> Iterator[Tensor]:
    """A flat integer view of a tensor to write to; of a copy, written back at the end, where it is not contiguous."""
    tensor = tensor.detach()
    full = tensor.contiguous()
    yield as_integers(full.view(-1))
    if full.data_ptr() != tensor.data_ptr():
        tensor.copy_(full)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over shape, dtype and bits; the same on every device."""
    sha = hashlib.sha256(f"{tuple(tensor.shape)}:{tensor.dtype}:".encode())
    _update(sha, tensor)
    return sha.hexdigest()


def _update(sha: Any, tensor: Tensor) -> None:
    flat = as_integers(tensor.detach().reshape(-1))
    for part in flat.split(bits.DEVICE_CHUNK):
        sha.update(part.cpu().numpy().data)
