"""What all recipes share: their arguments, the model, the variants to train, and the table at the end."""

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from tasks import Task, task_class
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_peft_config

from wagle_trainer import WagleConfig
from wagle_trainer.attribution import get_score
from wagle_trainer.cli import REFUSALS
from wagle_trainer.cli.parsing import read_yaml
from wagle_trainer.cli.run_config import RunParser, write_run_config
from wagle_trainer.comparison.learning_rate_rule import RETRAINED
from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation import results_table, save_results
from wagle_trainer.reporting import write_report

CONFIGS = Path(__file__).parent / "configs"
# What `--controls` takes besides scores and "lora": other names, and the simpler methods that the WAGLE paper compares with.
CONTROL_GROUPS = {"dense": ["none"], "paper": ["none", "random", "magnitude", "wanda", "lora"]}
SCOPES = {"wanda": "row"}  # the scope that a score is defined with, where it is not the run's
# The paper does not state its LoRA: rank 8 on all Linear modules is ours.
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def parse_arguments(task_name: str, loss_type: str) -> tuple[Task, WagleConfig, ModelConfig]:
    """Arguments of the command line and of `--config`; with neither that nor a model, on top of the bundled example's.

    Args:
        task_name: one of `list_tasks()`.
        loss_type: the objective, unless the arguments name another.

    Without a model, small Llamas are trained (or read from beside the output folder).
    """
    arguments = on_bundled_config(sys.argv[1:], _bundled_config(task_name, loss_type))
    parser = RunParser((task_class(task_name).arguments, WagleConfig, ModelConfig))
    parser.set_defaults(loss_type=loss_type)
    data, args, model_args = parser.parse_args_and_config(arguments)
    task = task_class(task_name)(data)
    if model_args.model_name_or_path is None:
        torch.set_num_threads(1)  # so small a model gains nothing from more, and then stands other load
        models = Path(args.output_dir).parent / "models"
        model_args.model_name_or_path = task.small_model(models)
        data.retrained_model = task.small_model(models, retrained=True)
    if args.process_index == 0:
        write_run_config(args.output_dir, parser.given)
    return task, args, model_args


def _bundled_config(task_name: str, loss_type: str) -> str:
    return f"fictional_{loss_type}" if task_name == "tofu" else f"{task_name}_fictional_{loss_type}"


def on_bundled_config(arguments: Sequence[str], name: str, model: str = "--model_name_or_path") -> list[str]:
    """Arguments, on top of a bundled configuration where they name neither a configuration nor a model.

    Raises:
        ValueError: they name files, of which the bundled model knows nothing.
    """
    given = {argument.split("=")[0] for argument in arguments}
    if given & {"--config", model}:
        return list(arguments)
    if given & {"--forget_file", "--retain_file"}:
        raise ValueError(f"Files of your own need a model: pass {model}, or a --config that names one.")
    return ["--config", str(CONFIGS / f"{name}.yaml"), *arguments]


def task_named(arguments: Sequence[str], default: str = "tofu") -> str:
    """The task that arguments, or their `--config`, name; it decides which other arguments there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    parser.add_argument("--config")
    found, _ = parser.parse_known_args(arguments)
    in_file = read_yaml(found.config) if found.config else {}
    return found.task or in_file.get("task", default)


@contextmanager
def refusals() -> Iterator[None]:
    """End the program with one line where an argument, or a file that it names, is refused, as `wagle` does.

    Raises:
        SystemExit: 2, as argparse's for wrong usage.
    """
    try:
        yield
    except REFUSALS as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def load_model(path: str, model_args: ModelConfig, device: Any) -> Any:
    """A model on its device."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=model_args.dtype).to(device)


def load_format(task: Task, model_args: ModelConfig) -> QAFormat:
    """How this model's tokenizer writes questions and answers."""
    path = model_args.model_name_or_path
    return task.data.qa_format(AutoTokenizer.from_pretrained(path), path)


class Variant(NamedTuple):
    """One row of the table: what is trained.

    Attributes:
        label: its name in the table.
        args: the configuration, with the variant's score and output folder.
        peft_config: of the adapter that is trained in place of the weights, if any.
    """

    label: str
    args: WagleConfig
    peft_config: Any


def variants(task: Task, args: WagleConfig, model_args: ModelConfig) -> list[Variant]:
    """The requested score and each control.

    Raises:
        ValueError: an unknown control, or an automatic density, which controls cannot share.
    """
    controls = [name for control in task.data.controls for name in CONTROL_GROUPS.get(control, [control])]
    if args.density == "auto" and set(controls) - {"none", "lora"}:
        raise ValueError('density="auto" differs from score to score: give controls the density that was picked.')
    peft_config = get_peft_config(model_args)
    requested = _variant(args, args.attribution or "none", peft_config)
    others = [_variant(args, control, peft_config) for control in controls]
    return list({variant.label: variant for variant in (requested, *others)}.values())


def _variant(args: WagleConfig, control: str, peft_config: Any) -> Variant:
    variant = copy.copy(args)
    variant.output_dir = str(Path(args.output_dir) / control)
    if control == "lora":
        variant.attribution, variant.attribution_kwargs = None, None
        return Variant("after, LoRA", variant, peft_config or LoraConfig(**LORA))
    if control == "none":
        variant.attribution = None
        return Variant("after, no mask", variant, peft_config)
    get_score(control)  # refuses an unknown one now
    variant.attribution = control
    if control != args.attribution:
        variant.attribution_kwargs = None  # options of the other score
        variant.attribution_scope = SCOPES.get(control, args.attribution_scope)
    return Variant(f"after, {control} mask {args.density}", variant, peft_config)


class Report:
    """Measures models with the task's suite; then prints one table, and writes one JSON file and one page."""

    def __init__(self, task: Task, args: WagleConfig, model_args: ModelConfig, qa: QAFormat):
        self.task, self.args, self.qa = task, args, qa
        self.sets = task.evaluation_sets(qa, task.limit)
        self.results: dict[str, Any] = {}
        self.masks: dict[str, Path] = {}
        self.retrained: dict[str, Any] | None = None
        if task.data.retrained_model:
            self.retrained = self._measure(load_model(task.data.retrained_model, model_args, args.device))

    def _measure(self, model: Any) -> dict[str, Any]:
        return self.task.evaluate(
            model,
            self.qa,
            self.sets,
            reference=self.retrained,
            batch_size=self.task.data.evaluation_batch_size,
            across_processes=True,
        )

    def add(self, label: str, model: Any, folder: str | None = None) -> None:
        """Measure a model; the table gets a row, and the page what the mask in its folder selects."""
        self.results[label] = self._measure(model)
        if folder is not None and (Path(folder) / "mask_config.json").exists():
            self.masks[label] = Path(folder)

    def write(self) -> None:
        """Print the table, and write `results.json` and `report.html` into the output folder."""
        if self.retrained is not None:
            self.results[RETRAINED] = self.retrained
        path = Path(self.args.output_dir) / "results.json"
        if self.args.process_index == 0:
            save_results(self.results, path)  # before the page: nothing is lost whatever happens there
            print(f"\n{results_table(self.results, self.task.headline)}\n\nAll numbers, answers and settings: {path}")
            page = write_report(
                self.results,
                self.args.output_dir,
                mask=self.masks,
                config=self.args,
                title=f"{self.task.name}: {self.args.loss_type}",
                suite=self.task.reading(),
            )
            print(f"The report: {page}")
