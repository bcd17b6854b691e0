"""The data loader of forget-retain pairs."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker

from wagle_trainer.data.pairing import EvenSampler, PairCollator, PairedDataset, PairSampler


def pair_loader(
    dataset: PairedDataset, sampler: PairSampler, collator: PairCollator, batch_size: int, args: Any
) -> DataLoader:
    """Return batches of pairs in the sampler's order, loaded as the trainer's `args` say; not yet sharded over processes.

    Every pair counts once on any number of processes: fillers make their batches even.
    """
    fill = args.world_size > 1 and not args.dataloader_drop_last
    workers = args.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EvenSampler(sampler, batch_size * args.world_size) if fill else sampler,
        collate_fn=collator,
        drop_last=args.dataloader_drop_last,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=partial(seed_worker, num_workers=workers, rank=args.process_index) if workers else None,
    )
