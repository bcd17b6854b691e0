"""Boolean masks packed into bits, eight weights to a byte. Bit i of byte j is flat position 8 * j + i."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CPU_CHUNK = 1 << 18  # weights processed at a time; their temporaries stay in the processor's cache
DEVICE_CHUNK = 1 << 26  # few kernel launches
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def on_cpu(tensor: Tensor) -> bool:
    """Whether NumPy can process the tensor, which is several times faster.

    The code for other devices runs everywhere; tests return False here to cover it.
    """
    return tensor.device.type == "cpu"


def chunk_of(tensor: Tensor) -> int:
    """Number of weights to process at a time, a multiple of 8."""
    return CPU_CHUNK if on_cpu(tensor) else DEVICE_CHUNK


def packed_size(numel: int) -> int:
    """Size of `numel` packed bits in bytes."""
    return math.ceil(numel / 8)


def pack(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into uint8 (ceil(numel / 8),) on the same device.

    The spare bits of the last byte are zero.
    """
    flat = mask.reshape(-1)
    if on_cpu(flat):
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(packed_size(flat.numel()), 8)
    place = 1 << torch.arange(8, dtype=torch.uint8, device=flat.device)
    return (padded * place).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Unpack bits to a bool tensor of `shape` on the device of `packed`; the inverse of `pack`."""
    numel = math.prod(shape)
    if on_cpu(packed):
        bits = np.unpackbits(packed.numpy(), count=numel, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool).reshape(shape)
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).view(-1)[:numel].bool().reshape(shape)


def from_index(index: Tensor, numel: int) -> Tensor:
    """Packed bits, uint8 (ceil(numel / 8),), with ones at the flat positions `index`."""
    if on_cpu(index):
        # `calloc` takes memory only for the pages that are written, so that few positions need little of it.
        packed = np.zeros(packed_size(numel), dtype=np.uint8)
        positions = index.numpy().astype(np.int64)
        np.bitwise_or.at(packed, positions >> 3, np.left_shift(1, positions & 7).astype(np.uint8))
        return torch.from_numpy(packed)
    mask = torch.zeros(numel, dtype=torch.bool, device=index.device)
    mask[index.long()] = True
    return pack(mask)


def to_index(packed: Tensor, numel: int) -> Tensor:
    """Ascending flat positions of the set bits, int32 (number of set bits,), or int64 for more than 2^31 weights."""
    dtype = torch.int32 if numel <= 2**31 else torch.int64
    size = chunk_of(packed)
    parts = [torch.empty(0, dtype=dtype, device=packed.device)]
    for start in range(0, numel, size):
        selected = unpack(packed[start // 8 : (start + size) // 8], (min(size, numel - start),))
        parts.append((selected.nonzero().view(-1) + start).to(dtype))
    return torch.cat(parts)


def unpacked_with(packed: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield unpacked bits with the matching parts of `tensors`, chunk by chunk.

    Yields:
        (bool (chunk,), part of each tensor (chunk,)); the parts share the memory of the tensors.
    """
    if not all(tensor.is_contiguous() for tensor in tensors):
        yield unpack(packed, tensors[0].shape), *tensors
        return
    flat = [tensor.view(-1) for tensor in tensors]
    size = chunk_of(packed)
    for start in range(0, flat[0].numel(), size):
        parts = [values[start : start + size] for values in flat]
        yield unpack(packed[start // 8 : (start + size) // 8], parts[0].shape), *parts


def as_integers(tensor: Tensor) -> Tensor:
    """View the bits as integers, so that comparisons tell NaNs and signed zeros apart."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def zero_unselected(values: Tensor, selected: Tensor) -> None:
    """Set unselected entries to zero, in place.

    By their bits: infinity times zero is NaN, and `masked_fill_` is three times slower on CPUs.
    """
    integers = as_integers(values)
    integers.bitwise_and_(selected.view(torch.int8).neg().to(integers.dtype))


def multiply_selected(values: Tensor, selected: Tensor, factor: float) -> None:
    """Multiply selected entries by `factor`, in place."""
    if not on_cpu(values) or values.dtype != torch.float32:
        torch.where(selected, values * factor, values, out=values)
        return
    # A number times one keeps its bits. The factors are composed from bits, since `where` is slow on CPUs.
    one, other = torch.tensor([1.0, factor]).view(torch.int32).tolist()
    factors = selected.view(torch.int8).neg().int().bitwise_and_(one ^ other).bitwise_xor_(one)
    values.mul_(factors.view(torch.float32))


def count(packed: Tensor) -> int:
    """Number of set bits."""
    parts = packed.split(DEVICE_CHUNK)  # their counts take as much memory as they do
    return sum(int(np.bitwise_count(part.cpu().numpy()).sum(dtype=np.int64)) for part in parts)
