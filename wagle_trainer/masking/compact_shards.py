"""Checkpoints of compact training on sharded weights: each process writes the state of its own rows into a file.

The selected weights of a tensor, in the order of their positions, are those of the first process, then those of the second.
So the files can be put together and cut for any number of processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wagle_trainer.engines.sharding import rows_before
from wagle_trainer.masking import bits
from wagle_trainer.masking.mask import WeightMask

FOLDER = "optimizer_compact"  # Trainer looks for folders whose names contain "optimizer"
_NAME = "rank{}-of-{}.pt"


def has_shards(checkpoint: Path) -> bool:
    """Whether a checkpoint holds the state of compact training on sharded weights."""
    return (checkpoint / FOLDER).is_dir()


def save_shard(state_dict: dict[str, Any], checkpoint: Path) -> None:
    """Write the optimizer's state for the rows on this process."""
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict, folder / _NAME.format(dist.get_rank(), dist.get_world_size()))
    dist.barrier()


def load_shards(checkpoint: Path) -> list[dict[str, Any]]:
    """The state dicts of all processes that wrote the checkpoint, in their order, read where they are needed.

    Raises:
        FileNotFoundError: the file of a process is missing.
    """
    files = list((checkpoint / FOLDER).glob(_NAME.format("*", "*")))
    worlds = {int(match.group(1)) for file in files if (match := re.search(r"-of-(\d+)\.pt$", file.name))}
    if len(worlds) != 1 or len(files) != next(iter(worlds)):
        raise FileNotFoundError(
            f"{checkpoint / FOLDER} holds {len(files)} files of a run on {sorted(worlds)} processes: the file of a process "
            "is missing. Copy all of them, or resume from another checkpoint."
        )
    paths = [checkpoint / FOLDER / _NAME.format(rank, len(files)) for rank in range(len(files))]
    return [torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths]


def selected_before(mask: WeightMask, name: str, parameter: Tensor) -> int:
    """How many selected weights of a parameter lie on earlier processes."""
    rows = rows_before(parameter)
    if not rows:
        return 0
    size = parameter.numel() // parameter.shape[0]
    return int(bits.unpack(mask.packed(name), parameter.shape).view(-1)[: rows * size].sum())


def cut(shards: list[Tensor], start: int, length: int) -> Tensor:
    """Entries from `start` on of what the shards are together; a scalar is the same in all of them."""
    if shards[0].dim() == 0:
        return shards[0]
    found, begins = [], 0
    for shard in shards:
        first, last = max(start - begins, 0), min(start + length - begins, len(shard))
        if first < last:
            found.append(shard[first:last])
        begins += len(shard)
    return torch.cat(found) if found else shards[0][:0].clone()


@contextmanager
def in_place_of_dense_state(save: Any = None, *, skip_loading: bool = False) -> Iterator[None]:
    """Within, `Trainer` hands the optimizer of a sharded model to `save`, and loads none.

    accelerate's functions find the state of parameters of the model, which compact training does not have. They are names in
    `transformers.trainer`, replaced here alone; the resumed runs in `tests/test_distributed.py` watch them.

    Args:
        save: called with the checkpoint's folder.
        skip_loading: nothing is loaded; the state is read when the mask is attached.
    """
    import transformers.trainer  # masks are used where Transformers is not installed

    module: Any = transformers.trainer
    found = module.save_fsdp_optimizer, module.load_fsdp_optimizer
    if save is not None:
        module.save_fsdp_optimizer = lambda plugin, accelerator, optimizer, model, folder, *_, **__: save(Path(folder))
    if skip_loading:
        module.load_fsdp_optimizer = lambda *_, **__: None
    try:
        yield
    finally:
        module.save_fsdp_optimizer, module.load_fsdp_optimizer = found
