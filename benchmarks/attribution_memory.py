"""Memory of the attribution with its sums in host memory, over backward passes whose gradients are freed as they arrive.

python benchmarks/attribution_memory.py --model MODEL_FOLDER --tofu TOFU_FOLDER

On a GPU the peak is the allocator's. Without one, the sums lie in the same memory as the model: their size, which is
known, is taken off the peak of the process.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from attribution import load_workload
from measure import DEVICE, peak_mib, report
from workload import arguments

from wagle_trainer import attribute
from wagle_trainer.attribution.gradients import attribution_mode, set_statistics
from wagle_trainer.attribution.scored_parameters import select_parameters
from wagle_trainer.models.log_probs import token_log_probs

FREED = "forward + backward, gradients freed as they arrive (floor)"
ON_DEVICE = "gradients, sums on the device"
ON_HOST = "gradients, sums in host memory"
WHOLE = "attribution, sums in host memory"
# Sums in host memory when the peak is reached, in numbers per weight; none of the rows without offload.
HOST_SUMS = {ON_HOST: 2, WHOLE: 2}


def freed(model: Any, *sets: list[Any]) -> None:
    """The floor: the attribution's own forward pass, and a backward pass that leaves no gradient."""
    parameters = select_parameters(model)
    with attribution_mode(model, parameters):
        handles = [
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
            for parameter in parameters.values()
        ]
        for batch in (batch for batches in sets for batch in batches):
            (-token_log_probs(model, batch).mean().sum()).backward()
        for handle in handles:
            handle.remove()


def gradients(offload: bool, model: Any, forget: list[Any], retain: list[Any]) -> None:
    """Both mean gradients."""
    parameters = select_parameters(model)
    with attribution_mode(model, parameters):
        kept = [
            set_statistics(model, parameters, batches, name=name, wanted={"grad"}, offload=offload, progress=False)
            for name, batches in (("forget", forget), ("retain", retain))
        ]
    del kept


VARIANTS: dict[str, Any] = {
    FREED: freed,
    ON_DEVICE: partial(gradients, False),
    ON_HOST: partial(gradients, True),
    WHOLE: partial(attribute, offload="cpu", progress=False),
}


def prepared(what: str, options: argparse.Namespace) -> Any:
    """`what` on a freshly loaded model; for measuring memory in a process of its own."""
    return partial(VARIANTS[what], *load_workload(options))


def main() -> None:
    options = arguments(__doc__, "attribution_memory", examples=4, batch_size=2).parse_args()
    peaks = {name: peak_mib(prepared, name, options) for name in VARIANTS}
    model = load_workload(options)[0]
    weights = [parameter.numel() for parameter in model.parameters()]
    model_mib = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    largest_mib = max(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    rows = []
    for name, peak in peaks.items():
        on_host = HOST_SUMS.get(name, 0) * sum(weights) * 4 / 2**20
        over = peak - peaks[FREED] - (on_host if DEVICE == "cpu" else 0)
        rows.append(
            {
                "": name,
                "peak MiB over the model": peak,
                "sums in host memory, MiB": on_host,
                "over floor, without host memory, MiB": over,
                "x largest tensor": over / largest_mib,
                "x parameters": over / model_mib,
            }
        )
    report(
        "Memory of the attribution on the device", rows, vars(options) | {"parameters": sum(weights)}, options.output
    )


if __name__ == "__main__":
    main()
