"""Forget-retain pairs: the data set, the order and the batches of an unlearning run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from wagle_trainer.data.fingerprint import fingerprint
from wagle_trainer.models.batch_layout import BatchLayout

Example = dict[str, Any]
Collator = Callable[[list[Example]], dict[str, Any]]
SPLITS = ("forget", "chosen", "retain")


class PairedDataset(Dataset):
    """Forget examples, each with a retain example and, for some objectives, a chosen answer to the same prompt.

    Indexed by (forget index, retain index), as `PairSampler` gives them; a third entry marks a pair that only fills a
    batch up (see `EvenSampler`).

    Args:
        forget, retain: tokenized sets with `input_ids` and `labels`.
        chosen: row i is the chosen answer to the prompt of forget example i.
    """

    def __init__(self, forget: Sequence[Example], retain: Sequence[Example], chosen: Sequence[Example] | None = None):
        self.forget, self.retain, self.chosen = forget, retain, chosen

    @property
    def splits(self) -> dict[str, Sequence[Example]]:
        """The sets by name: "forget", "chosen" if there is one, "retain"."""
        sets = {name: getattr(self, name) for name in SPLITS}
        return {name: dataset for name, dataset in sets.items() if dataset is not None}

    def __len__(self) -> int:
        """One epoch is one pass over the forget set."""
        return len(self.forget)

    def __getitem__(self, pair: tuple[int, ...]) -> dict[str, Example]:
        forget, retain, *filler = pair
        item = {"forget": _with_index(self.forget, forget), "retain": _with_index(self.retain, retain)}
        if self.chosen is not None:
            item["chosen"] = _with_index(self.chosen, forget)
        if filler:
            item["filler"] = {}
        return item

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Split -> digest of the set's tokens and labels."""
        return {name: fingerprint(dataset) for name, dataset in self.splits.items()}


def num_counted(batch: dict[str, Any]) -> int:
    """How many pairs of a batch count: none if it only keeps this process synchronised with others."""
    return 0 if "filler" in batch["forget"] else len(batch["forget"]["index"])


def _with_index(dataset: Sequence[Example], index: int) -> Example:
    row = dataset[index]
    return {"input_ids": row["input_ids"], "labels": row["labels"], "index": index}


class PairSampler(Sampler[tuple[int, int]]):
    """Every forget example once per epoch, in a seeded order, each with a retain example of a seeded permutation.

    Both are drawn again every epoch, from seed and epoch alone: the same on any number of processes, and on resume.
    A retain set smaller than the forget set is gone through several times, in a new order each time.
    """

    def __init__(self, num_forget: int, num_retain: int, seed: int):
        self.num_forget, self.num_retain, self.seed, self.epoch = num_forget, num_retain, seed, 0

    def __len__(self) -> int:
        return self.num_forget

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def rows(self, split: str, epochs: Iterable[int]) -> list[int]:
        """Rows of a split ("forget", "chosen" or "retain") that these epochs meet, sorted."""
        position = 1 if split == "retain" else 0
        return sorted({pair[position] for epoch in epochs for pair in self.pairs(epoch)})

    def pairs(self, epoch: int) -> list[tuple[int, int]]:
        """All pairs of one epoch, in order."""
        state = (self.seed << 20) + epoch
        # PyTorch's generator on the CPU reads the lower 32 bits of a seed alone: fold the others in.
        generator = torch.Generator().manual_seed((state + (state >> 32) * 0x9E3779B1) % 2**32)
        forget = torch.randperm(self.num_forget, generator=generator).tolist()
        retain: list[int] = []
        while len(retain) < self.num_forget:
            retain += torch.randperm(self.num_retain, generator=generator).tolist()
        return list(zip(forget, retain, strict=False))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs(self.epoch))


class EvenSampler(Sampler[tuple[int, ...]]):
    """The pairs of a sampler, and after them fillers up to a multiple of `size`.

    Several processes need as many batches each. accelerate repeats rows to that end, which would count twice; fillers are
    marked (see `PairCollator`).

    Args:
        sampler: gives the pairs.
        size: examples per batch on all processes together.
    """

    def __init__(self, sampler: PairSampler, size: int):
        self.sampler, self.size = sampler, size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.size) * self.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        pairs = list(self.sampler)
        yield from pairs
        for index in range(len(self) - len(pairs)):
            yield (*pairs[index % len(pairs)], 1)


def epochs_of_run(args: Any, num_examples: int) -> int:
    """Number of epochs that a Trainer begins with these training arguments."""
    if args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    batches = num_examples / (args.train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(args.max_steps / steps_per_epoch)


class PairCollator:
    """Batches of forget-retain pairs: {"forget": {...}, "retain": {...}}, each padded by itself by `collator`.

    Examples that are no pairs (evaluation sets) go to `collator` as they are. The batch of each split carries `index`,
    (batch,) int64: the rows of its data set, and `layout`, a `BatchLayout`. Fillers are left out; a batch of nothing else keeps one, and says so by
    `filler` in the batch of the forget split.
    """

    def __init__(self, collator: Collator):
        self.collator = collator

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        if "forget" not in examples[0]:
            return self.collator(examples)
        counted = [example for example in examples if "filler" not in example]
        used = counted or examples[:1]
        batch = {split: self._batch([example[split] for example in used]) for split in SPLITS if split in used[0]}
        if not counted:
            batch["forget"]["filler"] = torch.tensor([True])
        return batch

    def _batch(self, examples: list[Example]) -> dict[str, Any]:
        rows = [{key: value for key, value in example.items() if key != "index"} for example in examples]
        index = [example["index"] for example in examples]
        batch = self.collator(rows)
        layout = {"layout": BatchLayout.of(batch, index)} if "labels" in batch else {}
        return {**batch, "index": torch.tensor(index), **layout}
