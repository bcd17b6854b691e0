"""A step of NPO with a retain loss against a plain step over the same tokens: forward, backward, clipping and AdamW.

python benchmarks/npo_step.py --model MODEL_FOLDER --tofu TOFU_FOLDER
python benchmarks/npo_step.py --random_llama 7b
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from typing import Any

import torch
from measure import DEVICE, interleaved, peak_mib, report
from transformers import PrinterCallback
from workload import arguments, load_model, load_questions, load_tokenizer, to_device

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.data import QAFormat
from wagle_trainer.models.log_probs import concatenate

ONE, TWO, NPO = "plain step, one forward", "plain step, two forwards", "NPO + retain step"


def make_trainer(options: argparse.Namespace) -> Any:
    """A trainer that changes all weights, so that its steps differ from plain ones in the loss only."""
    tokenizer = load_tokenizer(options.model)
    qa = QAFormat.for_tokenizer(tokenizer)
    sets = {name: qa.dataset(rows) for name, rows in load_questions(options.tofu, options.examples).items()}
    model = load_model(options.model, options.random_llama, tokenizer)
    trainer = WagleTrainer(
        model,
        WagleConfig(
            tempfile.mkdtemp(),
            loss_type="npo",
            attribution=None,
            per_device_train_batch_size=options.batch_size,
            num_train_epochs=1,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=DEVICE == "cpu",
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        forget_dataset=sets["forget"],
        retain_dataset=sets["retain"],
        processing_class=tokenizer,
        optimizers=(make_optimizer(model), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    """The Trainer's default."""
    return torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)


def batches_of(trainer: Any) -> list[Any]:
    """The pairs of batches of the first epoch, on the model's device."""
    return [{name: to_device(part) for name, part in batch.items()} for batch in trainer.get_train_dataloader()]


def finish(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """What follows the backward pass."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def plain(name: str, model: Any, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
    """Steps on the model's own loss."""
    model.train()
    for batch in batches:
        parts = [{key: part[key] for key in ("input_ids", "attention_mask", "labels")} for part in batch.values()]
        losses = [model(**part, use_cache=False).loss for part in ([concatenate(parts)] if name == ONE else parts)]
        sum(losses).backward()
        finish(model, optimizer)


def npo(trainer: Any, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
    """Steps through the trainer's own path: `training_step`, and `compute_loss` within it."""
    for batch in batches:
        trainer.training_step(trainer.model, batch, torch.tensor(len(batch["forget"]["index"])))
        finish(trainer.model, optimizer)


def prepared(name: str, options: argparse.Namespace) -> Any:
    """One epoch, optimizer states included, on a freshly loaded model; NPO's with the pass for its reference values."""
    trainer = make_trainer(options)
    if name == NPO:
        return trainer.train
    return lambda: plain(name, trainer.model, trainer.optimizer, batches_of(trainer))


def main() -> None:
    options = arguments(__doc__, "npo_step").parse_args()
    memory = {name: peak_mib(prepared, name, options) for name in (ONE, TWO, NPO)}
    trainer = make_trainer(options)
    optimizer, batches = trainer.optimizer, batches_of(trainer)
    trainer.train()  # warm up: moments are made in the first step, reference values before it
    variants = {name: partial(plain, name, trainer.model, optimizer, batches) for name in (ONE, TWO)}
    times = interleaved({**variants, NPO: partial(npo, trainer, optimizer, batches)}, options.repeats)
    fastest, leanest = (min((ONE, TWO), key=values.__getitem__) for values in (times, memory))
    rows = [
        {
            "": name
            + (" (floor of time)" if name == fastest else "")
            + (" (floor of memory)" if name == leanest else ""),
            "seconds per step": times[name] / len(batches),
            "ratio": times[name] / times[fastest],
            "peak MiB over the model": memory[name],
            "memory ratio": memory[name] / memory[leanest],
        }
        for name in times
    ]
    report("NPO step with retain loss", rows, vars(options), options.output)


if __name__ == "__main__":
    main()
