"""What a study of single weights works on: a reference model that knows something, as tokenized sets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from wagle_trainer.data.facts import pad_examples
from wagle_trainer.models.log_probs import token_log_probs

Example = dict[str, list[int]]


@dataclass
class Subject:
    """A model that knows something, and what it is to forget.

    Attributes:
        model: the reference model, float32.
        tokenizer: its tokenizer.
        sets: name -> examples: "forget", "retain", "unseen" (as well known, in neither set) and, where there is one,
            "paraphrased" (the forget set in other words) and "repeated" (texts that repeat the forget answers).
        retrained: a model that never knew the forget set, where there is one.
        details: what else a result should say about it.
    """

    model: Any
    tokenizer: Any
    sets: dict[str, list[Example]]
    retrained: Any = None
    details: dict[str, Any] = field(default_factory=dict)


def load(path: str) -> Any:
    """A model in float32, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()


@lru_cache(maxsize=1)
def load_shared(path: str) -> Any:
    """The model of a folder, loaded once for all seeds; whoever changes its weights puts them back."""
    return load(path)


def teach(model: Any, examples: Sequence[Example], seed: int, rate: float = 1e-4, goal: float = 0.9) -> None:
    """Train all weights until the mean probability of the answers reaches `goal`, or for 30 epochs."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    rng = random.Random(seed)
    order = list(range(len(examples)))
    model.train()
    for _ in range(30):
        rng.shuffle(order)
        known = []
        for start in range(0, len(order), 8):
            batch = pad_examples([examples[index] for index in order[start : start + 8]])
            means = token_log_probs(model, {k: v.to(device) for k, v in batch.items()}).mean()
            (-means.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            known += means.detach().exp().tolist()
        if sum(known) / len(known) >= goal:
            break
    model.eval()
