"""Eight weights to a byte: packing of boolean masks, on any device. Bit i of byte j is flat position 8 * j + i."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def packed_size(numel: int) -> int:
    """Bytes that `numel` packed bits take."""
    return math.ceil(numel / 8)


def pack(mask: Tensor) -> Tensor:
    """bool tensor of any shape -> uint8 (ceil(numel / 8),) on the same device; the spare bits are zero."""
    flat = mask.reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    place = 1 << torch.arange(8, dtype=torch.uint8, device=flat.device)
    return (padded * place).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: bool tensor of `shape` on the device of `packed`."""
    numel = math.prod(shape)
    if packed.device.type == "cpu":
        bits = np.unpackbits(packed.numpy(), count=numel, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool).reshape(shape)
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).view(-1)[:numel].bool().reshape(shape)


def count(packed: Tensor) -> int:
    """Number of set bits."""
    return int(np.bitwise_count(packed.cpu().numpy()).sum(dtype=np.int64))
