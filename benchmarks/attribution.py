"""Attribution against its floor, plain forward and backward passes over the same batches; and the whole way from raw
data sets to the mask against the official code's, which pads every example to 512 tokens.

python benchmarks/attribution.py --model MODEL_FOLDER --tofu TOFU_FOLDER

What comes after the gradients has a benchmark of its own: selection.py.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from measure import interleaved, peak_mib, report
from workload import arguments, load, load_model, load_questions, load_tokenizer, to_device

from wagle_trainer import WeightMask, attribute
from wagle_trainer.attribution.gradients import attribution_mode, mean_gradient
from wagle_trainer.attribution.scored_parameters import select_parameters
from wagle_trainer.data import QAFormat
from wagle_trainer.data.length_sorted_batches import LengthSortedBatches, make_collator
from wagle_trainer.data.preparation import DatasetPreparation

PADDED_LENGTH = 512  # of every example, in the official code's data module


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


VARIANTS: dict[str, Any] = {
    "plain forward + backward (floor)": plain,
    "attribution without selection": gradients_only,
    "attribution with selection and mask": partial(attribute, offload=None, progress=False),
    "attribution with sums in host memory": partial(attribute, offload="cpu", progress=False),
}


def prepared(what: str, options: argparse.Namespace) -> Any:
    """`what` on a freshly loaded model; for measuring memory in a process of its own."""
    return partial(VARIANTS[what], *load_workload(options))


def load_workload(options: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    return load(options.model, options.tofu, options.examples, options.batch_size, options.random_llama)


def padded_way(model: Any, tokenizer: Any, sets: dict[str, Dataset], batch_size: int) -> None:
    """Raw sets to both gradients with every example padded to 512 tokens, in the order of the set."""
    qa = QAFormat.for_tokenizer(tokenizer)
    for rows in sets.values():
        model.zero_grad()
        for start in range(0, len(rows), batch_size):
            encoded = [
                qa.encode(row["question"], row["answer"])
                for row in rows.select(range(start, min(start + batch_size, len(rows))))
            ]
            batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
            for row in encoded:
                padding = PADDED_LENGTH - len(row["input_ids"])
                batch["input_ids"].append(row["input_ids"] + [tokenizer.pad_token_id] * padding)
                batch["attention_mask"].append([1] * len(row["input_ids"]) + [0] * padding)
                batch["labels"].append(row["labels"] + [-100] * padding)
            plain(model, [to_device({key: torch.tensor(value) for key, value in batch.items()})])


def our_way(model: Any, tokenizer: Any, sets: dict[str, Dataset], batch_size: int) -> WeightMask:
    """Raw sets to the mask, as `WeightAttributionCallback` does it."""
    qa = QAFormat.for_tokenizer(tokenizer)
    preparation = DatasetPreparation(tokenizer, max_length=None)
    collator = make_collator(tokenizer.pad_token_id)
    batches = [
        LengthSortedBatches(preparation(qa.dataset(rows), name), batch_size, collator) for name, rows in sets.items()
    ]
    return attribute(model, *batches, progress=False)


def raw_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """From raw data sets to the mask, on a model of 19 M weights."""
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, options.raw_llama, tokenizer)
    sets = load_questions(options.tofu, options.questions)
    few = load_questions(options.tofu, options.batch_size)
    ways = {"padded to 512 (reference)": padded_way, "wagle_trainer": our_way}
    for way in ways.values():
        way(model, tokenizer, few, options.batch_size)  # warm up
    times = interleaved(
        {name: partial(way, model, tokenizer, sets, options.batch_size) for name, way in ways.items()},
        options.raw_repeats,
    )
    questions = " + ".join(str(len(rows)) for rows in sets.values())
    reference = next(iter(times.values()))
    return [
        {
            "": f"raw sets to mask, {questions} questions, {options.raw_llama} model: {name}",
            "seconds": seconds,
            "ratio": seconds / reference,
            "speed-up": reference / seconds,
        }
        for name, seconds in times.items()
    ]


def main() -> None:
    parser = arguments(__doc__, "attribution")
    parser.add_argument("--questions", type=int, default=400, help="Of each raw set; 0 leaves this part out.")
    parser.add_argument("--raw_llama", default="19m", help="Shape of the model that the raw sets are scored on.")
    parser.add_argument("--raw_repeats", type=int, default=1)
    options = parser.parse_args()
    memory = {name: peak_mib(prepared, name, options) for name in VARIANTS}
    model, forget, retain = load_workload(options)
    plain(model, forget, retain)  # warm up
    model.zero_grad()

    times = interleaved({name: partial(run, model, forget, retain) for name, run in VARIANTS.items()}, options.repeats)
    floor = next(iter(VARIANTS))
    parameter_mib = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    rows: list[dict[str, Any]] = [
        {
            "": name,
            "seconds": times[name],
            "ratio": times[name] / times[floor],
            "peak MiB over the model": memory[name],
            "x parameters over floor": (memory[name] - memory[floor]) / parameter_mib,
        }
        for name in VARIANTS
    ]
    parameters = sum(p.numel() for p in model.parameters())
    del model
    if options.questions:
        rows += raw_rows(options)
    report("Attribution", rows, vars(options) | {"parameters": parameters}, options.output)


if __name__ == "__main__":
    main()
