"""Masked training steps against unmasked ones: forward, backward, clipping and AdamW, on the same batch; and AdamW alone.

python benchmarks/masked_step.py --model MODEL_FOLDER --tofu TOFU_FOLDER
python benchmarks/masked_step.py --random_llama tiny
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from measure import interleaved, report
from workload import arguments, load

from wagle_trainer import WeightMask, attribute
from wagle_trainer.masking import MaskedUpdates
from wagle_trainer.masking.compact_adamw import CompactAdamW

FLOOR = "unmasked, AdamW"


def step(model: Any, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """One training step; the gradients stay, for the timing of the optimizer alone."""
    optimizer.zero_grad()
    model(**batch, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def make_optimizer(kind: type[torch.optim.AdamW], model: Any, options: argparse.Namespace) -> torch.optim.Optimizer:
    """`fused`, as the Trainer's default is."""
    return kind(model.parameters(), lr=1e-5, weight_decay=options.weight_decay, fused=True)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))


def main() -> None:
    parser = arguments(__doc__, "masked_step", examples=8, batch_size=8)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.8, 0.95], help="Of masks with plain AdamW.")
    parser.add_argument("--compact", type=float, nargs="+", default=[0.05, 0.2, 0.5], help="With CompactAdamW.")
    parser.add_argument("--weight_decay", type=float, default=0.01)
    options = parser.parse_args()
    model, (batch, *_), _ = load(
        options.model, options.tofu, options.examples, options.batch_size, options.random_llama
    )
    model.train()
    dense = make_optimizer(torch.optim.AdamW, model, options)
    variants: dict[str, tuple[float, torch.optim.Optimizer, WeightMask | None]] = {FLOOR: (1.0, dense, None)}
    for kind, densities in ((torch.optim.AdamW, options.densities), (CompactAdamW, options.compact)):
        for density in densities:
            mask = attribute(model, None, None, score="random", density=density, progress=False)
            optimizer = dense if kind is torch.optim.AdamW else make_optimizer(kind, model, options)
            variants[f"mask of density {density:g}, {kind.__name__}"] = density, optimizer, mask
    # One model for all of them: copies lie elsewhere in memory, which alone makes steps differ by several percent.
    attached: list[MaskedUpdates] = []

    def attach(name: str) -> None:
        while attached:
            attached.pop().detach()
        _, optimizer, mask = variants[name]
        if mask is not None:
            attached.append(MaskedUpdates(model, mask, optimizer))

    def warm_up(name: str) -> None:
        attach(name)
        step(model, variants[name][1], batch)

    steps = {name: partial(step, model, optimizer, batch) for name, (_, optimizer, _) in variants.items()}
    whole = interleaved(steps, options.repeats, warm_up)
    alone = interleaved({name: o.step for name, (_, o, _) in variants.items()}, options.repeats, warm_up)
    states = {name: state_bytes(optimizer) for name, (_, optimizer, _) in variants.items()}
    rows = [
        {
            "": name,
            "seconds per step": whole[name],
            "ratio": whole[name] / whole[FLOOR],
            "optimizer alone": alone[name],
            "ratio ": alone[name] / alone[FLOOR],
            "state / dense state": states[name] / states[FLOOR],
            "state / (density x dense)": states[name] / (density * states[FLOOR]),
        }
        for name, (density, _, _) in variants.items()
    ]
    report("Masked training step (random masks)", rows, vars(options), options.output)


if __name__ == "__main__":
    main()
