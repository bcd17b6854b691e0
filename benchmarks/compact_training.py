"""Compact training against plain AdamW and dense masked training: peak memory, time per step, and updates that bfloat16 loses.

python benchmarks/compact_training.py --model MODEL_FOLDER --tofu TOFU_FOLDER
python benchmarks/compact_training.py --random_llama tiny
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import DEVICE, interleaved, peak_mib, report
from workload import arguments, load

from wagle_trainer import WeightMask, attribute
from wagle_trainer.masking import CompactUpdates, MaskedUpdates
from wagle_trainer.masking.compact_adamw import CompactAdamW
from wagle_trainer.masking.compact_updates import master_weights

FREED = "backward pass, gradients freed as they arrive"
PLAIN = "unmasked, AdamW"
DENSE = "masked, dense gradients, compact moments"
COMPACT = "masked, compact training"


def step(model: Any, optimizer: torch.optim.Optimizer, updates: Any, batch: Any) -> None:
    """One training step with clipping, after which no gradient is left."""
    model(**batch, use_cache=False).loss.backward()
    compact = isinstance(updates, CompactUpdates)
    torch.nn.utils.clip_grad_norm_(updates.masters() if compact else model.parameters(), 1.0)
    optimizer.step()
    model.zero_grad()


def freed_backward(model: Any, batch: Any) -> None:
    """A forward and backward pass that leaves no gradient."""
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for parameter in model.parameters()
    ]
    model(**batch, use_cache=False).loss.backward()
    for handle in handles:
        handle.remove()


def attach(kind: str, model: Any, mask: WeightMask, lr: float, decay: float) -> tuple[torch.optim.Optimizer, Any]:
    """The optimizer of a variant, fused as the Trainer's default is, and its updates."""
    optimizer = (CompactAdamW if kind == DENSE else torch.optim.AdamW)(
        model.parameters(), lr=lr, weight_decay=decay, fused=True
    )
    if kind == PLAIN:
        return optimizer, None
    return optimizer, (MaskedUpdates if kind == DENSE else CompactUpdates)(model, mask, optimizer, skip_frozen=True)


def random_mask(model: Any, density: float) -> WeightMask:
    """`density` of the weights of every tensor."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    return WeightMask.from_dict(
        {
            name: (torch.rand(parameter.shape, generator=generator, device=DEVICE) < density).cpu()
            for name, parameter in model.named_parameters()
        }
    )


def prepare_peak(kind: str, options: argparse.Namespace) -> Callable[[], None]:
    """Two steps of a variant; the second one has all states."""
    model, (batch, *_), _ = load(
        options.model, options.tofu, options.examples, options.batch_size, options.random_llama
    )
    model.train()
    mask = random_mask(model, options.density)

    def run() -> None:
        if kind == FREED:
            for _ in range(2):
                freed_backward(model, batch)
            return
        optimizer, updates = attach(kind, model, mask, 1e-5, 0.01)
        for _ in range(2):
            step(model, optimizer, updates, batch)

    return run


def times(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds per step of each variant."""
    model, (batch, *_), _ = load(
        options.model, options.tofu, options.examples, options.batch_size, options.random_llama
    )
    model.train()
    mask = random_mask(model, options.density)
    attached: list[tuple[Any, Any]] = []

    def warm_up(kind: str) -> None:
        while attached:
            _, updates = attached.pop()
            if updates is not None:
                updates.detach()
        attached.append(attach(kind, model, mask, 1e-5, 0.01))
        step(model, *attached[0], batch)

    def run() -> None:
        step(model, *attached[0], batch)

    return interleaved(dict.fromkeys((PLAIN, DENSE, COMPACT), run), options.repeats, warm_up)


def moved(kind: str, options: argparse.Namespace) -> float:
    """Share of the selected weights that differ after four steps at learning rate 1e-5 from a bfloat16 model's."""
    model, batches, _ = load(options.model, options.tofu, options.few, 1, options.random_llama)
    short = [{key: value[:, : options.tokens] for key, value in batch.items()} for batch in batches]
    for batch in short:
        batch["labels"] = batch["input_ids"].clone()
    mask = attribute(model, short, None, score="snip", density=options.density, progress=False)
    model.bfloat16().train()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, updates = attach(kind, model, mask, 1e-5, 0.0)
    for number in range(4):
        step(model, optimizer, updates, short[number % len(short)])
    values = master_weights(model, mask, updates)
    changed = [values[n] != start[n][mask[n]].float() for n in values]
    return float(torch.cat(changed).float().mean())


def main() -> None:
    parser = arguments(__doc__, "compact_training", examples=8, batch_size=8)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--few", type=int, default=2, help="Questions of the bfloat16 part, one in a batch.")
    parser.add_argument("--tokens", type=int, default=16, help="Length of each, since CPUs are slow in bfloat16.")
    parser.add_argument(
        "--parts", nargs="+", choices=["peak", "time", "bfloat16"], default=["peak", "time", "bfloat16"]
    )
    options = parser.parse_args()
    kinds = (FREED, PLAIN, DENSE, COMPACT)
    rows: dict[str, dict[str, Any]] = {kind: {"": kind} for kind in kinds}
    if "peak" in options.parts:
        model, *_ = load(options.model, options.tofu, 1, 1, options.random_llama)
        parameters = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
        del model
        peaks = {kind: peak_mib(partial(prepare_peak, kind, options)) for kind in kinds}
        for kind, peak in peaks.items():
            rows[kind]["peak over a freed backward pass / parameters"] = (peak - peaks[FREED]) / parameters
    if "time" in options.parts:
        seconds = times(options)
        for kind, value in seconds.items():
            rows[kind]["time per step / plain"] = value / seconds[PLAIN]
    if "bfloat16" in options.parts:
        for kind in (DENSE, COMPACT):
            rows[kind]["selected weights that move, bfloat16, lr 1e-5, 4 steps"] = moved(kind, options)
    report(
        f"Compact training at density {options.density:g} (random masks)",
        list(rows.values()),
        vars(options),
        options.output,
    )


if __name__ == "__main__":
    main()
