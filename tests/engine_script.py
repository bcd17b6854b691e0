"""Training runs on one engine, for tests/test_distributed.py:  ENGINE FOLDER CASES

CASES is a JSON file with a list of runs, {"output": ..., "arguments": {...}, "checkpoint": ... or None}, which one process
group trains one after the other. Each leaves its results in its output folder.

accelerate does not run FSDP or DeepSpeed on CPUs. The engines themselves do, with gloo: only accelerate's choice of the
engine is lifted here.
"""

import json
import os
import sys
from pathlib import Path

SETTINGS = {
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


def lift_restrictions(engine: str) -> None:
    """Let accelerate run FSDP or DeepSpeed on CPUs."""
    import torch
    from accelerate import state
    from accelerate.utils import DistributedType

    if engine.startswith("fsdp"):
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
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        state.PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)


def engine_arguments(engine: str) -> dict:
    """Arguments of `WagleConfig` that choose the engine; accelerate would ignore DeepSpeed with `use_cpu`."""
    if not engine.startswith("zero"):
        return {"use_cpu": True}
    zero = {"stage": int(engine[-1]), "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "deepspeed": {
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        }
    }


def train(engine: str, folder: Path, output: Path, arguments: dict, checkpoint: str | None) -> None:
    """One run; writes weights, mask and what this process saw into `output`.

    Args:
        arguments: of `WagleConfig`; and "forget_rows", how many rows of the forget set to take.
    """
    from datasets import load_from_disk
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wagle_trainer import WagleConfig, WagleTrainer

    arguments = dict(arguments)
    rows = arguments.pop("forget_rows", None)
    forget = load_from_disk(str(folder / "forget"))
    poison = arguments.pop("poison", False)
    trainer = WagleTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        WagleConfig(
            str(output),
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            **{**SETTINGS, **engine_arguments(engine), **arguments},
        ),
        forget_dataset=forget.select(range(rows or len(forget))),
        retain_dataset=load_from_disk(str(folder / "retain")),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    if poison:
        stopped_by(trainer, engine, output)
        return
    trainer.train(resume_from_checkpoint=checkpoint)
    evaluations = {"alone": evaluation(trainer, False), "shared": evaluation(trainer, True)}
    weights = full_weights(engine, trainer)
    rank = trainer.args.process_index
    updates = "none" if trainer._attribution is None else type(trainer._attribution._last_updates).__name__
    compact = updates == "CompactUpdates"
    masters = trainer.master_weights() if compact else {}
    if rank == 0:
        save_file(masters, output / "masters.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, output / "weights.safetensors")
        if trainer.mask is not None:
            trainer.mask.save_pretrained(output)
    result = {
        "engine": trainer.accelerator.distributed_type.value,
        "world": trainer.args.world_size,
        "digest": trainer.mask.digest if trainer.mask is not None else None,
        "updates": updates,
        "log": trainer.state.log_history,
        "evaluations": evaluations,
    }
    (output / f"rank{rank}.json").write_text(json.dumps(result))


def stopped_by(trainer, engine: str, output: Path) -> None:
    """Train with gradients that are NaN on the last process in the second step; write how the run ends."""
    import torch
    from safetensors.torch import save_file

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(_, loss):
            return loss.clone()

        @staticmethod
        def backward(_, gradient):
            return gradient * float("nan")

    compute_loss, rank = trainer.compute_loss, trainer.args.process_index

    def poisoned(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        last = rank == trainer.args.world_size - 1 and trainer.state.global_step == 1
        return Poison.apply(loss) if last else loss

    trainer.compute_loss = poisoned
    error = None
    try:
        trainer.train()
    except FloatingPointError as stop:
        error = str(stop)
    weights = full_weights(engine, trainer)
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, output / "weights.safetensors")
        trainer.mask.save_pretrained(output)
    (output / f"rank{rank}.json").write_text(json.dumps({"error": error, "steps": trainer.state.global_step}))


def evaluation(trainer, across_processes: bool) -> dict:
    """Scores and answers of three examples, in batches of two: two processes have as many turns, four have not."""
    from wagle_trainer.evaluation import generate_greedy, score_answers

    examples = [{"input_ids": [5, *range(7, 7 + n), 1], "labels": [-100, *range(7, 7 + n), 1]} for n in (3, 9, 5)]
    options = {"batch_size": 2, "across_processes": across_processes, "progress": False}
    scores = score_answers(trainer.model, examples, ["first", "second", "third"], eos_token_id=1, **options)
    prompts = [example["input_ids"][:n] for n, example in enumerate(examples, start=2)]
    return {
        "scores": [score.mean_log_prob for score in scores],
        "texts": generate_greedy(trainer.model, trainer.processing_class, prompts, max_new_tokens=8, **options),
    }


def full_weights(engine: str, trainer) -> dict:
    """The trained weights by name, gathered from all processes."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    if engine == "fsdp1":
        # accelerate's way to the full weights ends in a segmentation fault on CPUs, masked or not (torch 2.13).
        with FullyShardedDataParallel.summon_full_params(trainer.model, writeback=False):
            names = (name.replace("_fsdp_wrapped_module.", "") for name, _ in trainer.model.named_parameters())
            parameters = zip(names, trainer.model.parameters(), strict=True)
            return {name: parameter.detach().clone() for name, parameter in parameters}
    return trainer.accelerator.get_state_dict(trainer.deepspeed if engine.startswith("zero") else trainer.model)


def main(engine: str, folder: Path, cases: Path) -> None:
    import torch
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    lift_restrictions(engine)
    for case in json.loads(cases.read_text()):
        train(engine, folder, Path(case["output"]), case["arguments"], case["checkpoint"])
        torch.distributed.barrier()
        (Path(case["output"]) / "done").touch()
        AcceleratorState._reset_state()  # but not the process group
    # Not through the interpreter's end: with a process group it now and then ends in "terminate called without an
    # active exception". All processes have written what they found by then.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
