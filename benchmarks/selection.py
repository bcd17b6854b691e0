"""Selection of the highest scores, and the mask that comes of it, against finding the threshold by a partition.

python benchmarks/selection.py
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import DEVICE, interleaved, peak_mib, report

from wagle_trainer import WeightMask
from wagle_trainer.attribution.selection import num_selected, select
from wagle_trainer.masking.mask_info import MaskInfo


def make_scores(weights: int, tensors: int) -> dict[str, torch.Tensor]:
    """Products of two normal numbers, as |g_r * g_f| is, in tensors of equal size but for the last."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    flat = torch.randn(weights, generator=generator, device=DEVICE)
    flat.mul_(torch.randn(weights, generator=generator, device=DEVICE)).abs_()
    return {f"tensor{index}": part.clone() for index, part in enumerate(flat.chunk(tensors))}


def partition(flat: np.ndarray, density: float) -> float:
    """The floor on the CPU: the threshold alone, no mask and no rule for ties."""
    kth = len(flat) - num_selected(density, len(flat))
    return np.partition(flat, kth)[kth]


def partition_on_the_host(flat: torch.Tensor, density: float) -> float:
    return partition(flat.cpu().numpy(), density)


def kthvalue(flat: torch.Tensor, density: float) -> float:
    return flat.kthvalue(len(flat) - num_selected(density, len(flat)) + 1).values.item()


def topk(flat: torch.Tensor, density: float) -> float:
    return flat.topk(num_selected(density, len(flat)), sorted=False).values.min().item()


def ours(scores: dict[str, torch.Tensor], density: float) -> WeightMask:
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    packed = {name: bits.cpu() for name, bits in select(dict(scores), density).items()}
    return WeightMask(packed, shapes, MaskInfo(score="product", requested_density=density))


OURS = "selection + mask"
FLOORS: dict[str, Any] = (
    {"torch.kthvalue": kthvalue, "torch.topk": topk, "copy to the host + np.partition": partition_on_the_host}
    if DEVICE == "cuda"
    else {"np.partition": partition}
)


def prepared(name: str, options: argparse.Namespace, density: float) -> Any:
    """One variant on scores of its own."""
    scores = make_scores(options.weights, options.tensors)
    if name == OURS:
        return partial(ours, scores, density)
    flat = torch.cat(list(scores.values()))
    return partial(FLOORS[name], flat.numpy() if DEVICE == "cpu" else flat, density)


def size_ratio(mask: WeightMask) -> float:
    """Bytes of the saved mask for each byte of one bit per weight."""
    with tempfile.TemporaryDirectory() as folder:
        mask.save_pretrained(folder)
        return (Path(folder) / "mask.safetensors").stat().st_size / (mask.num_weights / 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=134_515_008, help="Scores; by default as SmolLM2-135M has.")
    parser.add_argument("--tensors", type=int, default=272)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.8, 0.95])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", default="benchmarks/results/selection.json")
    options = parser.parse_args()
    rows = []
    for density in options.densities:
        names = [*FLOORS, OURS]
        memory = {name: peak_mib(prepared, name, options, density) for name in names}
        times = interleaved({name: prepared(name, options, density) for name in names}, options.repeats)
        floor = min(FLOORS, key=times.__getitem__)
        rows += [
            {
                "": f"density {density:g}: {name}{' (floor)' if name == floor else ''}",
                "seconds": times[name],
                "ratio": times[name] / times[floor],
                "peak MiB over the scores": memory[name],
                "memory ratio": memory[name] / max(memory[floor], 1e-9),
                **(
                    {"bytes on disk / (N / 8)": size_ratio(prepared(name, options, density)())} if name == OURS else {}
                ),
            }
            for name in names
        ]
    report("Selection", rows, vars(options), options.output)


if __name__ == "__main__":
    main()
