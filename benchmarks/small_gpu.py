"""Whether a model unlearns on a GPU of a given size: `WagleTrainer` from attribution to the last step, memory limited by the allocator.

python benchmarks/small_gpu.py --random_llama 7b --gib 24

NPO with a retain loss, a WAGLE mask, bfloat16 weights, float32 masters and moments of the selected weights, gradient
checkpointing; examples of random tokens, all of one length. Without a GPU it runs and measures no memory.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from measure import DEVICE, report
from transformers import PrinterCallback, TrainerCallback
from workload import arguments, load_model, load_tokenizer

from wagle_trainer import WagleConfig, WagleTrainer

GIB = 2**30


class Phases(TrainerCallback):
    """Seconds and peak memory of what comes before the first step, and of the steps."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.begin()

    def begin(self) -> None:
        """Begin a phase."""
        self.start = time.perf_counter()
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def end(self, name: str, steps: int = 1) -> None:
        """End it, and begin the next one."""
        row: dict[str, Any] = {"": name}
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            row["peak allocated, GiB"] = torch.cuda.max_memory_allocated() / GIB
            row["peak reserved, GiB"] = torch.cuda.max_memory_reserved() / GIB
        self.rows.append(row | {"seconds": (time.perf_counter() - self.start) / steps})
        self.begin()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.end("attribution, mask and reference log-probabilities")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.end("first step")
        elif state.global_step == state.max_steps:
            self.end("each later step", state.max_steps - 1)


def random_tokens(examples: int, length: int, vocabulary: int, seed: int) -> Dataset:
    """Examples whose first quarter is the question."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(10, vocabulary, (examples, length), generator=generator).tolist()
    return Dataset.from_list(
        [{"input_ids": row, "labels": [-100] * (length // 4) + row[length // 4 :]} for row in rows]
    )


def main() -> None:
    parser = arguments(__doc__, "small_gpu", examples=8, batch_size=4)
    parser.add_argument("--gib", type=float, default=24, help="Memory that the process may take of the GPU.")
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--score", default="wagle")
    parser.add_argument("--tokens", type=int, default=256, help="Length of the examples.")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    if DEVICE == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            options.gib * GIB / torch.cuda.get_device_properties(0).total_memory
        )
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, options.random_llama, tokenizer)
    vocabulary = min(model.config.vocab_size, len(tokenizer))
    sets = [random_tokens(options.examples, options.tokens, vocabulary, seed) for seed in (0, 1)]
    before = {name: p.detach().flatten()[:: max(1, p.numel() // 1000)].clone() for name, p in model.named_parameters()}
    phases = Phases()
    trainer = WagleTrainer(
        model,
        WagleConfig(
            tempfile.mkdtemp(),
            loss_type="npo",
            attribution=options.score,
            attribution_offload="cpu",
            attribution_batch_size=options.batch_size,
            density=options.density,
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=DEVICE == "cpu",
            gradient_checkpointing=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        forget_dataset=sets[0],
        retain_dataset=sets[1],
        processing_class=tokenizer,
        callbacks=[phases],
    )
    trainer.remove_callback(PrinterCallback)
    phases.begin()
    trainer.train()
    after = {name: p.detach().flatten()[:: max(1, p.numel() // 1000)] for name, p in model.named_parameters()}
    masters = trainer.master_weights()
    weights = sum(p.numel() for p in model.parameters())
    report(
        f"{options.random_llama or options.model}, {options.gib:g} GiB",
        phases.rows,
        vars(options)
        | {
            "weights": weights,
            "weights_gib": sum(p.nbytes for p in model.parameters()) / GIB,
            "selected": trainer.mask.num_selected,
            "float32_masters": sum(values.numel() for values in masters.values()),
            "looked_at": sum(values.numel() for values in after.values()),
            "of_these_changed": sum(int((after[name] != before[name]).sum()) for name in after),
        },
        options.output,
    )


if __name__ == "__main__":
    main()
