"""One training run on one engine, for tests/test_distributed.py:  ENGINE FOLDER OUTPUT ARGUMENTS [CHECKPOINT]

accelerate does not run FSDP or DeepSpeed on CPUs. The engines themselves do, with gloo: only accelerate's choice of the
engine is lifted here.
"""

import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

engine, folder, output, arguments = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
use_cpu = True

if engine.startswith("fsdp"):
    from accelerate import state
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FullyShardedDataParallel

    accelerator_init, fsdp1_init = state.AcceleratorState.__init__, FullyShardedDataParallel.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        accelerator_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    state.AcceleratorState.__init__ = init
    FullyShardedDataParallel.__init__ = lambda self, *args, **kwargs: fsdp1_init(
        self, *args, **{**kwargs, "device_id": torch.device("cpu")}
    )
elif engine.startswith("zero"):
    from accelerate import state
    from accelerate.utils import DistributedType

    use_cpu = False  # or accelerate ignores DeepSpeed
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    state.PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)
    arguments["deepspeed"] = {
        "zero_optimization": {"stage": int(engine[-1]), "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }

from datasets import load_from_disk
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.evaluation import generate_greedy, score_answers

settings = {
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "optim": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 0.1,
    "density": 0.3,
    "max_grad_norm": 5.0,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
}
trainer = WagleTrainer(
    AutoModelForCausalLM.from_pretrained(folder / "model"),
    WagleConfig(
        str(output),
        use_cpu=use_cpu,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **{**settings, **arguments},
    ),
    forget_dataset=load_from_disk(str(folder / "forget")),
    retain_dataset=load_from_disk(str(folder / "retain")),
    processing_class=AutoTokenizer.from_pretrained(folder / "model"),
)
trainer.train(resume_from_checkpoint=(sys.argv[5:] or [None])[0])


def evaluation(across_processes):
    """Scores and answers of three examples, in batches of two: two processes have as many turns, four have not."""
    examples = [{"input_ids": [5, *range(7, 7 + n), 1], "labels": [-100, *range(7, 7 + n), 1]} for n in (3, 9, 5)]
    options = {"batch_size": 2, "across_processes": across_processes, "progress": False}
    return {
        "scores": [
            score.mean_log_prob
            for score in score_answers(
                trainer.model, examples, ["first", "second", "third"], eos_token_id=1, **options
            )
        ],
        "texts": generate_greedy(
            trainer.model,
            trainer.processing_class,
            [example["input_ids"][:n] for n, example in enumerate(examples, start=2)],
            max_new_tokens=8,
            **options,
        ),
    }


evaluations = {"alone": evaluation(False), "shared": evaluation(True)}
model, rank = trainer.model, trainer.args.process_index
if engine == "fsdp1":
    # accelerate's way to the whole weights ends in a segmentation fault on CPUs, masked or not (torch 2.13).
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        names = (name.replace("_fsdp_wrapped_module.", "") for name, _ in model.named_parameters())
        weights = {name: p.detach().clone() for name, p in zip(names, model.parameters(), strict=True)}
else:
    weights = trainer.accelerator.get_state_dict(trainer.deepspeed if engine.startswith("zero") else model)
if rank == 0:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, output / "weights.safetensors")
    trainer.mask.save_pretrained(output)
result = {
    "engine": trainer.accelerator.distributed_type.value,
    "world": trainer.args.world_size,
    "digest": trainer.mask.digest,
    "log": trainer.state.log_history,
    "evaluations": evaluations,
}
(output / f"rank{rank}.json").write_text(json.dumps(result))
if torch.distributed.is_initialized():
    # Not through the interpreter's end: with a process group it now and then ends in "terminate called without an
    # active exception". All processes have written what they found by then.
    torch.distributed.barrier()
    os._exit(0)
