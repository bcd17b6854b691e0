"""Attribution against its floor: plain forward and backward passes over the same batches.

python benchmarks/attribution.py --model MODEL_FOLDER --tofu TOFU_FOLDER
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
from measure import interleaved, peak_mib, report
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer import attribute
from wagle_trainer.attribution.attribute import select_parameters
from wagle_trainer.attribution.gradients import attribution_mode, mean_gradient
from wagle_trainer.attribution.selection import select
from wagle_trainer.data import QAFormat, load_tofu
from wagle_trainer.data.batching import LengthSortedBatches, make_collator


def load(model_folder: str, tofu: str, examples: int, batch_size: int) -> tuple[Any, list[Any], list[Any]]:
    """A model, and batches of real questions to forget and to retain."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(model_folder).to(device).eval()
    qa = QAFormat.for_tokenizer(tokenizer)
    batches = []
    for split in ("forget01", "retain99"):
        rows = load_tofu(tofu, split).select(range(examples))
        encoded = [qa.encode(row["question"], row["answer"]) for row in rows]
        from datasets import Dataset

        sets = LengthSortedBatches(Dataset.from_list(encoded), batch_size, make_collator(tokenizer.eos_token_id))
        batches.append([{key: value.to(device) for key, value in batch.items()} for batch in sets])
    return model, batches[0], batches[1]


def plain(model: Any, *sets: list[Any]) -> None:
    """The floor: forward with the model's own loss, and backward."""
    for batches in sets:
        model.zero_grad()
        for batch in batches:
            model(**batch, use_cache=False).loss.backward()


def gradients_only(model: Any, forget: list[Any], retain: list[Any]) -> None:
    """Both mean gradients, no score and no mask."""
    parameters = select_parameters(model)
    with attribution_mode(model, parameters):
        for name, batches in (("forget", forget), ("retain", retain)):
            mean_gradient(model, parameters, batches, name=name, progress=False)


def prepared(what: str, *arguments: Any) -> Any:
    """`what` on a freshly loaded model; for measuring memory in a process of its own."""
    torch.set_num_threads(arguments[-1])
    return partial(VARIANTS[what], *load(*arguments[:-1]))


VARIANTS = {
    "plain forward + backward (floor)": plain,
    "attribution without selection": gradients_only,
    "attribution with selection and mask": partial(attribute, progress=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tofu", default="../shared/data/tofu")
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="benchmarks/results/attribution.json")
    options = parser.parse_args()
    arguments = (options.model, options.tofu, options.examples, options.batch_size)
    model, forget, retain = load(*arguments)
    plain(model, forget, retain)  # warm up
    model.zero_grad()

    times = interleaved({name: partial(run, model, forget, retain) for name, run in VARIANTS.items()}, options.repeats)
    memory = {name: peak_mib(prepared, name, *arguments, torch.get_num_threads()) for name in VARIANTS}
    floor = next(iter(VARIANTS))
    parameter_mib = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    rows = [
        {
            "": name,
            "seconds": times[name],
            "ratio": times[name] / times[floor],
            "peak MiB over the model": memory[name],
            "x parameters over floor": (memory[name] - memory[floor]) / parameter_mib,
        }
        for name in VARIANTS
    ]

    model.zero_grad()
    scores = {name: parameter.detach().abs() for name, parameter in model.named_parameters()}
    flat = torch.cat([score.flatten() for score in scores.values()]).cpu().numpy()
    kth = int(0.2 * len(flat))
    selection = interleaved(
        {
            "np.partition on the same scores (floor)": lambda: np.partition(flat, kth),
            "selection + mask": lambda: select(dict(scores), 0.8),
        },
        options.repeats,
    )
    floor_seconds = next(iter(selection.values()))
    rows += [
        {
            "": n,
            "seconds": s,
            "ratio": s / floor_seconds,
            "peak MiB over the model": "-",
            "x parameters over floor": "-",
        }
        for n, s in selection.items()
    ]
    report("Attribution", rows, vars(options) | {"parameters": len(flat)}, options.output)


if __name__ == "__main__":
    main()
