"""Pairs of a forget and a retain example: the data set, the order and the batches of an unlearning run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from wagle_trainer.data.fingerprint import fingerprint

Example = dict[str, Any]
Collator = Callable[[list[Example]], dict[str, Any]]
ROLES = ("forget", "preferred", "retain")


class PairedDataset(Dataset):
    """Forget examples, each with a retain example and, for some objectives, a preferred answer to the same prompt.

    Indexed by (forget index, retain index), as `PairSampler` gives them.

    Args:
        forget, retain: tokenized sets with `input_ids` and `labels`.
        preferred: row i is the preferred answer to the prompt of forget example i.
    """

    def __init__(
        self, forget: Sequence[Example], retain: Sequence[Example], preferred: Sequence[Example] | None = None
    ):
        self.forget, self.retain, self.preferred = forget, retain, preferred

    def __len__(self) -> int:
        """One epoch is one pass over the forget set."""
        return len(self.forget)

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Example]:
        forget, retain = pair
        item = {"forget": _with_index(self.forget, forget), "retain": _with_index(self.retain, retain)}
        if self.preferred is not None:
            item["preferred"] = _with_index(self.preferred, forget)
        return item

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Role -> digest of the set's tokens and labels."""
        sets = {role: getattr(self, role) for role in ROLES}
        return {role: fingerprint(dataset) for role, dataset in sets.items() if dataset is not None}


def _with_index(dataset: Sequence[Example], index: int) -> Example:
    row = dataset[index]
    return {"input_ids": row["input_ids"], "labels": row["labels"], "index": index}


class PairSampler(Sampler[tuple[int, int]]):
    """Every forget example once per epoch, in a seeded order, each with a retain example of a seeded permutation.

    Both are drawn anew every epoch, from seed and epoch alone: the same on any number of processes, and on resume.
    A retain set smaller than the forget set is gone through several times, in a new order each time.
    """

    def __init__(self, num_forget: int, num_retain: int, seed: int):
        self.num_forget, self.num_retain, self.seed, self.epoch = num_forget, num_retain, seed, 0

    def __len__(self) -> int:
        return self.num_forget

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws for."""
        self.epoch = epoch

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


class PairCollator:
    """Batches of pairs, {"forget": {...}, "retain": {...}}, each half padded on its own by `collator`.

    Examples that are no pairs (evaluation sets) go to `collator` as they are. Every half carries `index`, (batch,)
    int64: the rows of its data set.
    """

    def __init__(self, collator: Collator):
        self.collator = collator

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        if "forget" not in examples[0]:
            return self.collator(examples)
        return {role: self._half([example[role] for example in examples]) for role in ROLES if role in examples[0]}

    def _half(self, examples: list[Example]) -> dict[str, Any]:
        rows = [{key: value for key, value in example.items() if key != "index"} for example in examples]
        return {**self.collator(rows), "index": torch.tensor([example["index"] for example in examples])}
