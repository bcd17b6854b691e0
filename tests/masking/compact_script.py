"""A run of compact training on one or two processes, and then one with a NaN on the last process:  FOLDER OUTPUT"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import load_from_disk
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.masking import CompactUpdates

torch.set_num_threads(1)
folder, output = map(Path, sys.argv[1:])
output.mkdir(exist_ok=True)
world = int(os.environ.get("WORLD_SIZE", "1"))


def make_trainer(**changes) -> WagleTrainer:
    config = WagleConfig(
        str(output / "run"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        attribution="random",
        density=0.05,
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=5e-3,
        optim="adamw_torch",
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no",
        **changes,
    )
    return WagleTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        config,
        forget_dataset=load_from_disk(str(folder / "forget")),
        retain_dataset=load_from_disk(str(folder / "retain")),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )


sent, buckets, kinds = [], [], set()
all_reduce = dist.all_reduce


def counted(tensor, *args, **kwargs):
    if isinstance(trainer._attribution.updates, CompactUpdates) and tensor.numel() > 100:  # not the logs
        sent.append(tensor.numel())
    return all_reduce(tensor, *args, **kwargs)


def count_bucket(state, bucket):
    buckets.append(bucket.buffer().numel())
    return allreduce_hook(dist.group.WORLD, bucket)


trainer = make_trainer()
step = trainer.training_step


def watched_step(model, *args, **kwargs):
    kinds.add(type(trainer._attribution.updates).__name__)
    if world > 1 and not getattr(model, "is_watched", False):
        model.is_watched = True
        model.register_comm_hook(None, count_bucket)
    return step(model, *args, **kwargs)


trainer.training_step = watched_step
dist.all_reduce = counted
trainer.train()
dist.all_reduce = all_reduce
if trainer.args.process_index == 0:
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    save_file(weights, output / "weights.safetensors")

poisoned = make_trainer()
before = {name: p.detach().clone() for name, p in poisoned.model.named_parameters()}
if poisoned.args.process_index == world - 1:
    poisoned.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: torch.full_like(grad, float("nan")))
error = None
try:
    poisoned.train()
except FloatingPointError as found:
    error = str(found)
result = {
    "kinds": sorted(kinds),
    "sent": sent,
    "buckets": buckets,
    "selected": trainer.mask.num_selected,
    "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry],
    "error": error,
    "moved": sum(int((p.detach() != before[name]).sum()) for name, p in poisoned.model.named_parameters()),
}
(output / f"rank{trainer.args.process_index}.json").write_text(json.dumps(result))
if dist.is_initialized():
    dist.barrier()
    os._exit(0)
