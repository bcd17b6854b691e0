"""Forward passes with a sparse adapter, merged and not, against the same model without one; and the adapter's size.

python benchmarks/adapter.py --model MODEL_FOLDER --tofu TOFU_FOLDER
python benchmarks/adapter.py --random_llama tiny
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, peak_mib, report
from peft import PeftModel
from workload import arguments, load

from wagle_trainer import attribute
from wagle_trainer.adapters import SparseAdapter, merge
from wagle_trainer.adapters.adapter import WEIGHTS_NAME, base_digests

FLOOR = "adapter written into the model (floor)"
ACTIVE = "adapter active"
STATES = (FLOOR, "adapter merged", ACTIVE, "adapter disabled")


def make_adapter(options: argparse.Namespace, folder: str) -> tuple[float, int]:
    """Save an adapter of random positions; what its size may be at most, and the bytes of the largest tensor."""
    base, _, _ = load(options.model, options.tofu, 1, 1, options.random_llama)
    mask = attribute(base, None, None, score="random", density=options.density, progress=False)
    digests = base_digests(base, mask)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter += 1e-3 * mask[name].to(parameter.device)
    SparseAdapter.from_mask(base, mask, digests).save_pretrained(folder)
    bound = mask.num_selected * base.dtype.itemsize + min(mask.num_weights / 8, 4 * mask.num_selected)
    return bound, max(base.get_parameter(name).nbytes for name in digests)


def prepare(state: str, options: argparse.Namespace, folder: str) -> Callable[[], Any]:
    """A forward pass over all batches in one of the states."""
    model, batches, _ = load(options.model, options.tofu, options.examples, options.batch_size, options.random_llama)
    if state == FLOOR:
        merge(model, folder)
    else:
        model = PeftModel.from_pretrained(model, folder)
        if state == "adapter merged":
            model.merge_adapter()
        elif state == "adapter disabled":
            model.base_model.disable_adapter_layers()

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(**batch, use_cache=False)

    forward()  # warm up
    return forward


def main() -> None:
    parser = arguments(__doc__, "adapter", examples=16, batch_size=8)
    parser.add_argument("--density", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bound, largest = make_adapter(options, folder)
        size = (Path(folder) / WEIGHTS_NAME).stat().st_size
        seconds = interleaved({state: prepare(state, options, folder) for state in STATES}, options.repeats)
        peak = {state: peak_mib(prepare, state, options, folder) for state in (FLOOR, ACTIVE)}
    rows = []
    for state in STATES:
        row: dict[str, Any] = {"": state, "seconds": seconds[state], "ratio": seconds[state] / seconds[FLOOR]}
        if state in peak:
            row["peak MiB over the model"] = peak[state]
            row["more than the floor / largest tensor"] = (peak[state] - peak[FLOOR]) * 2**20 / largest
        rows.append(row)
    settings = vars(options) | {"adapter_bytes": size, "adapter_bytes_over_bound": size / bound}
    report("Forward pass with an adapter (random positions)", rows, settings, options.output)
    print(f"Adapter file: {size:,} bytes, {size / bound:.4f} of what density, dtype and positions allow.")


if __name__ == "__main__":
    main()
