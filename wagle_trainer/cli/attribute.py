"""`wagle attribute`: the mask that `wagle unlearn` would train with, without the training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from wagle_trainer.cli.mask import table
from wagle_trainer.cli.parsing import show_lines
from wagle_trainer.cli.run_config import write_run_config
from wagle_trainer.cli.training import parse_training, trainer_for

DESCRIPTION = """Score the weights of a model and save the mask in --output_dir: to look at, to train with in many runs
(--mask_path), and for ZeRO-3 and FSDP1, which cannot score. Takes the options and files of `wagle unlearn`."""
EXAMPLES = """
  wagle attribute --model_name_or_path MODEL --forget_file forget.jsonl --retain_file retain.jsonl --density 0.05 \\
      --output_dir masks/wagle
  wagle attribute --config run.yaml --attribution random --output_dir masks/random
  wagle attribute --config run.yaml --attribution_gamma balanced --attribution_offload cpu --output_dir masks/wagle
  accelerate launch -m wagle_trainer.cli attribute --config run.yaml --output_dir masks/wagle"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    return parse_training("attribute", DESCRIPTION, EXAMPLES, arguments, run=_run, show=_show)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    trainer = trainer_for(options)
    if options.training.process_index == 0:
        write_run_config(options.training.output_dir, options.given)
    mask = trainer.compute_mask()
    if options.training.process_index == 0:
        mask.save_pretrained(options.training.output_dir)
        options.qa_format.save_pretrained(options.training.output_dir)
    return {"output_dir": options.training.output_dir, **mask.describe(), "summary": mask.summary()}


def _show(result: dict[str, Any]) -> str:
    shown = ("score", "gamma", "scope", "density", "effective_density", "num_selected", "num_weights", "digest")
    return (
        f"{show_lines({name: result[name] for name in shown})}\n\n{table(result['summary']['module'])}\n\n"
        f"Saved in {result['output_dir']}: train with --mask_path {result['output_dir']}"
    )
