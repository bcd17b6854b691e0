"""`wagle unlearn`: `WagleTrainer` with the arguments of its configuration, from the command line or a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from wagle_trainer.cli.parsing import show_lines
from wagle_trainer.cli.run_config import write_run_config
from wagle_trainer.cli.training import parse_training, trainer_for

DESCRIPTION = """Make a model forget. Scores the weights, trains the selected ones with the objective --loss_type, and saves model,
tokenizer, mask, model card and the run's options (config.yaml) in --output_dir."""
EXAMPLES = """
  wagle unlearn --model_name_or_path MODEL --forget_file forget.jsonl --retain_file retain.jsonl --output_dir out
  wagle unlearn --model_name_or_path MODEL --dataset_name locuslab/TOFU --forget_split forget05 --loss_type npo \\
      --density 0.05 --learning_rate 1e-5 --num_train_epochs 5 --output_dir out
  wagle unlearn --config run.yaml --attribution random --output_dir out/control
  wagle unlearn --config run.yaml --attribution none --use_peft --lora_target_modules wagle --output_dir out/lora
  wagle unlearn --config run.yaml --mask_path masks/wagle --output_dir out
  wagle unlearn --config run.yaml --resume_from_checkpoint true   # where a stopped run was last saved
  accelerate launch -m wagle_trainer.cli unlearn --config run.yaml"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    return parse_training("unlearn", DESCRIPTION, EXAMPLES, arguments, run=_run, show=show_lines)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    trainer = trainer_for(options)
    if trainer.is_world_process_zero():
        write_run_config(options.training.output_dir, options.given)
    checkpoint = options.training.resume_from_checkpoint
    # In a YAML file it may be true, the last one; on the command line everything is text.
    output = trainer.train(resume_from_checkpoint=True if str(checkpoint).lower() == "true" else checkpoint)
    trainer.save_model()
    mask = trainer.mask
    return {
        "output_dir": options.training.output_dir,
        "steps": output.global_step,
        "train_loss": output.training_loss,
        "density": None if mask is None else mask.density,
        "mask_digest": None if mask is None else mask.digest,
        "lora_modules": trainer.lora_modules,
    }
