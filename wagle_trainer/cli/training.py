"""What the commands share that make a `WagleTrainer`: their arguments, and the trainer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, get_peft_config, get_quantization_config

from wagle_trainer.cli.help import add_both_helps, grouped_help
from wagle_trainer.cli.parsing import JSON_HELP
from wagle_trainer.cli.run_config import RunParser
from wagle_trainer.config import WagleConfig
from wagle_trainer.data.forget_and_retain import DataArguments, load_forget_and_retain
from wagle_trainer.models.loading import naming

# Of the recipes' YAML files: what they do before and after training. Here `wagle evaluate` does it.
OF_THE_RECIPES = ("controls", "retrained_model", "evaluation_samples", "evaluation_batch_size")
# What `--help` shows: option -> name of its value, and text. All others are in `--help-all`.
SHOWN = {
    "model": {
        "model_name_or_path": ("PATH", "the model that is to forget: folder or Hub id"),
        "dtype": ("DTYPE", "number format of its weights: float32, bfloat16, float16"),
        "use_peft": ("", "train a LoRA adapter; --lora_target_modules wagle lets the score choose its modules"),
    },
    "data": {
        "forget_file": (
            "FILE",
            "what to forget: .jsonl, .json, .csv, .tsv, .parquet, .txt, a folder or a Hub id; most shapes are known",
        ),
        "retain_file": ("FILE", "what to keep, in the same way"),
        "question_column": ("NAME", "where a file's columns are not known; with it --answer_column, or --text_column"),
        "drop_overlap": ("", "take rows out of the retain set that are in the forget set, too"),
        "dataset_name": ("NAME", "in their place a TOFU: locuslab/TOFU, a folder, or the bundled 'fictional'"),
        "forget_split": ("SPLIT", "with it: forget01, forget05 or forget10"),
    },
    "objective": {
        "loss_type": ("NAME", "npo, grad_diff, po, dpo, rmu, simnpo, ...: `describe_losses()` has all of them"),
        "preset": ("NAME", "wagle-paper or wagle-paper-wmdp: the paper's settings for what is left at its default"),
        "loss_kwargs": ("JSON", 'its arguments, such as \'{"beta": 0.1, "retain_loss": "kl"}\''),
        "retain_weight": ("NUMBER", "factor of the retain loss: higher keeps more, forgets less"),
    },
    "mask": {
        "attribution": ("SCORE", "wagle, snip, gradient, random, ..., or 'none' to train all weights"),
        "density": ("SHARE", "share of the weights that may change: 0.8 as in the paper, 0.05 or less for a patch"),
        "attribution_gamma": (
            "NUMBER",
            "of the wagle score: low where the retain set is like the training data, high elsewhere",
        ),
        "attribution_exclude": ("REGEX", "parameters that stay frozen, such as embed_tokens"),
        "mask_path": ("PATH", "a saved mask to use; then nothing is scored"),
        "save_adapter": ("", "save the change as a small adapter that can be revoked, in place of the whole model"),
    },
    "training": {
        "output_dir": ("DIR", "where model, mask, card and config.yaml go"),
        "learning_rate": (
            "RATE",
            "a small patch needs a much higher one than all weights: try 1e-4 to 1e-2 at 0.05 or less",
        ),
        "num_train_epochs": ("NUMBER", "passes over the forget set"),
        "max_steps": ("NUMBER", "optimizer steps, in place of the epochs if above 0"),
        "per_device_train_batch_size": ("NUMBER", "forget-retain pairs per device and forward pass"),
        "gradient_accumulation_steps": ("NUMBER", "batches per optimizer step"),
        "lr_scheduler_type": ("NAME", "linear, constant, cosine, ..."),
        "max_length": ("TOKENS", "longest example; an answer that would be cut off is refused"),
        "save_strategy": ("WHEN", "checkpoints: no, steps, epoch"),
        "seed": ("NUMBER", "of everything random"),
    },
    "this run": {
        "config": ("FILE", "YAML file of options; a run's config.yaml and the recipes' files will do"),
        "resume_from_checkpoint": ("true|DIR", "go on where a stopped run was last saved"),
        "report_to": ("NAME", "wandb, trackio, tensorboard, ..."),
        "json": ("", JSON_HELP),
        "help-all": ("", "all options: those of TRL's SFTTrainer, with its defaults, and the rest of ours"),
    },
}


@dataclass
class OutputArguments:
    """How the result is printed."""

    json: bool = field(default=False, metadata={"help": JSON_HELP})


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults of all options; examples as they are written."""


class _TrainingParser(RunParser):
    """Options of a training command; `--help` shows those of `SHOWN`."""

    examples = ""
    shown: Mapping[str, Mapping[str, tuple[str, str]]] = SHOWN

    def format_help(self) -> str:
        """The help with the options that matter."""
        groups = {
            title: {
                f"--{name} {value}".rstrip(): (text, self._shown_default(name))
                for name, (value, text) in options.items()
            }
            for title, options in self.shown.items()
        }
        return grouped_help(str(self.usage), self.description or "", groups, self.examples)

    def format_help_all(self) -> str:
        """The help with all options."""
        return super().format_help()

    def _shown_default(self, name: str) -> Any:
        default = self.get_default(name)
        return None if default in (None, False, -1) else getattr(default, "value", default)


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
    parsed = parse_options(name, description, examples, arguments, (DataArguments,), OF_THE_RECIPES)
    return argparse.Namespace(
        data=parsed.first[0],
        training=parsed.training,
        model=parsed.model,
        json=parsed.json,
        run=run,
        show=show,
        given=parsed.given,
    )


def parse_options(
    name: str,
    description: str,
    examples: str,
    arguments: Sequence[str],
    first: Sequence[type],
    ignored_in_file: Sequence[str] = (),
    shown: Mapping[str, Mapping[str, tuple[str, str]]] = SHOWN,
) -> argparse.Namespace:
    """Options of some dataclasses, of a training run and of its model, from the command line and from `--config`.

    Args:
        name, description, examples: of the command.
        arguments: of the command line.
        first: dataclasses of options besides those of the run.
        ignored_in_file: options that a file may have and the command does not.
        shown: what `--help` shows: title -> option -> name of its value, and text.

    Returns:
        `first` (an instance of each dataclass), `training`, `model`, `json`, `given`.

    Raises:
        ValueError: an unknown option in the file, or a value that is refused.
        SystemExit: the same on the command line.
    """
    parser = _TrainingParser(
        (*first, OutputArguments, WagleConfig, ModelConfig),
        prog=f"wagle {name}",
        usage=f"wagle {name} [--config FILE.yaml] [--OPTION VALUE ...]",
        description=description,
        epilog=f"examples:{examples}",
        formatter_class=_Formatter,
        add_help=False,
    )
    parser.examples, parser.shown = examples, shown
    add_both_helps(parser)
    try:
        *read, output, training, model, unknown_in_file, unknown = parser.parse_args_and_config(
            arguments, return_remaining_strings=True, separate_remaining_strings=True
        )
    except yaml.YAMLError as error:
        raise ValueError(f"The configuration file is no YAML: {error}") from error
    except RecursionError as error:
        raise ValueError("The configuration file, or JSON in an option, is nested too deeply.") from error
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    names = [text.removeprefix("--") for text in unknown_in_file[::2]]
    wrong = [name for name in names if name not in ignored_in_file]
    if wrong:
        raise ValueError(f"The configuration file has options that are unknown: {', '.join(wrong)}.")
    if model.model_name_or_path is None:
        parser.error("the following arguments are required: --model_name_or_path")
    return argparse.Namespace(first=read, training=training, model=model, json=output.json, given=parser.given)


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
    use_chat_template(options.training.chat_template_path, tokenizer, source)
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
        qa_format=options.qa_format,
    )


def use_chat_template(path: str | None, tokenizer: Any, source: dict[str, Any]) -> None:
    """Give the tokenizer the template of --chat_template_path, as TRL does later: questions are written with it, too."""
    from transformers import AutoTokenizer

    if path is None:
        return
    if Path(path).is_file() and path.endswith((".jinja", ".j2")):
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    else:
        with naming(path):
            other = AutoTokenizer.from_pretrained(path, trust_remote_code=source["trust_remote_code"])
        tokenizer.chat_template = other.chat_template
