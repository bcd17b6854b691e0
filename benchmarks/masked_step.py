"""A masked training step against an unmasked one: forward, backward, clipping and AdamW, on the same batch.

python benchmarks/masked_step.py --model MODEL_FOLDER --tofu TOFU_FOLDER
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import torch
from attribution import load
from measure import interleaved, report

from wagle_trainer import attribute
from wagle_trainer.masking import MaskedUpdates


def step(model: Any, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """One training step."""
    model(**batch, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tofu", default="../shared/data/tofu")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.8, 0.95])
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", default="benchmarks/results/masked_step.json")
    options = parser.parse_args()
    base, (batch, *_), _ = load(options.model, options.tofu, options.batch_size, options.batch_size)
    variants = {}
    for density in (None, *options.densities):
        model = copy.deepcopy(base).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=options.weight_decay)
        name = "unmasked step (floor)"
        if density is not None:
            mask = attribute(model, None, None, score="random", density=density, progress=False)
            MaskedUpdates(model, mask, optimizer)
            name = f"masked step, density {density:g}"
        variants[name] = partial(step, model, optimizer, batch)
        variants[name]()  # warm up: moments are made in the first step
    times = interleaved(variants, options.repeats)
    floor = next(iter(times.values()))
    rows = [{"": name, "seconds": seconds, "ratio": seconds / floor} for name, seconds in times.items()]
    report("Masked training step", rows, vars(options), options.output)


if __name__ == "__main__":
    main()
