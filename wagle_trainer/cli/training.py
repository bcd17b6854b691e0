"""What the commands share that make a `WagleTrainer`: their arguments, and the trainer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from wagle_trainer.cli.models import naming
from wagle_trainer.cli.parsing import JSON_HELP
from wagle_trainer.config import WagleConfig
from wagle_trainer.data.forget_and_retain import DataArguments, load_forget_and_retain

# Of the recipes' YAML files: what they do before and after training. Here `wagle evaluate` does it.
OF_THE_RECIPES = ("controls", "retrained_model", "evaluation_samples", "evaluation_batch_size")


@dataclass
class OutputArguments:
    """How the result is printed."""

    json: bool = field(default=False, metadata={"help": JSON_HELP})


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults of all options; examples as they are written."""


def parse_training(
    name: str,
    description: str,
    examples: str,
    arguments: Sequence[str],
    run: Callable[[argparse.Namespace], dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
) -> argparse.Namespace:
    """Options of `WagleTrainer` and its data, from the command line and from `--config`.

    Raises:
        ValueError: an unknown option in the file, or a value that is refused.
        SystemExit: the same on the command line.
    """
    parser = TrlParser(
        (DataArguments, OutputArguments, WagleConfig, ModelConfig),
        prog=f"wagle {name}",
        usage=f"wagle {name} [--config FILE.yaml] [--OPTION VALUE ...]",
        description=description,
        epilog=f"examples:{examples}",
        formatter_class=_Formatter,
    )
    try:
        data, output, training, model, unknown_in_file, unknown = parser.parse_args_and_config(
            arguments, return_remaining_strings=True, separate_remaining_strings=True
        )
    except yaml.YAMLError as error:
        raise ValueError(f"The configuration file is no YAML: {error}") from error
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    names = [text.removeprefix("--") for text in unknown_in_file[::2]]
    wrong = [name for name in names if name not in OF_THE_RECIPES]
    if wrong:
        raise ValueError(f"The configuration file has options that are unknown: {', '.join(wrong)}.")
    if model.model_name_or_path is None:
        parser.error("the following arguments are required: --model_name_or_path")
    return argparse.Namespace(data=data, training=training, model=model, json=output.json, run=run, show=show)


def trainer_for(options: argparse.Namespace) -> Any:
    """The trainer that the options of `parse_training` describe."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wagle_trainer.trainer import WagleTrainer

    source = {
        "revision": options.model.model_revision,
        "trust_remote_code": options.training.trust_remote_code,
    }
    path, quantization = options.model.model_name_or_path, get_quantization_config(options.model)
    with naming(path):
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
    options.qa_format = options.data.qa_format(tokenizer, path)
    forget, retain = load_forget_and_retain(options.data, options.qa_format)
    with naming(path):
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=options.model.dtype,
            attn_implementation=options.model.attn_implementation,
            quantization_config=quantization,
            device_map={"": options.training.device} if quantization is not None else None,
            **source,
        )
    return WagleTrainer(
        model=model,
        args=options.training,
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=tokenizer,
        peft_config=get_peft_config(options.model),
    )
