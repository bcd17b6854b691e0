"""What all recipes share: their arguments, the model, the variants to train, and the table at the end."""

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from tasks import RecipeArguments, Task, get_task
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, TrlParser

from wagle_trainer import WagleConfig
from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation import results_table, save_results

CONFIGS = Path(__file__).parent / "configs"
RETRAINED = "retrained without the forget set"


def parse_arguments(task_name: str, loss_type: str) -> tuple[Task, WagleConfig, ModelConfig]:
    """Arguments of the command line and of `--config`; with none at all, those of the bundled example.

    Without a model, small Llamas are trained (or read from beside the output folder).
    """
    arguments = sys.argv[1:] or ["--config", str(CONFIGS / f"{_bundled_config(task_name, loss_type)}.yaml")]
    parser = TrlParser((RecipeArguments, WagleConfig, ModelConfig))
    parser.set_defaults(loss_type=loss_type)
    data, args, model_args = parser.parse_args_and_config(arguments)
    task = get_task(task_name, data)
    if model_args.model_name_or_path is None:
        torch.set_num_threads(1)  # so small a model gains nothing from more, and then stands other load
        models = Path(args.output_dir).parent / "models"
        model_args.model_name_or_path = task.small_model(models)
        data.retrained_model = task.small_model(models, retrained=True)
    return task, args, model_args


def _bundled_config(task_name: str, loss_type: str) -> str:
    return f"fictional_{loss_type}" if task_name == "tofu" else f"{task_name}_fictional_{loss_type}"


def load_model(path: str, model_args: ModelConfig, device: Any) -> Any:
    """A model on its device."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=model_args.dtype).to(device)


def load_format(task: Task, model_args: ModelConfig) -> QAFormat:
    """How this model's tokenizer writes questions and answers."""
    return QAFormat.for_tokenizer(AutoTokenizer.from_pretrained(model_args.model_name_or_path), task.data.style)


def variants(task: Task, args: WagleConfig) -> dict[str, WagleConfig]:
    """The configuration of the requested score and of each control, by its label in the table."""
    controls = task.data.controls
    if args.density == "auto" and set(controls) - {"none"}:
        raise ValueError('density="auto" differs from score to score: give controls the density that was picked.')
    found = {}
    for score in dict.fromkeys([args.attribution or "none", *controls]):
        variant = copy.copy(args)
        variant.attribution = None if score == "none" else score
        if score != args.attribution:
            variant.attribution_kwargs = None  # options of the other score
        variant.output_dir = str(Path(args.output_dir) / score)
        found["after, no mask" if score == "none" else f"after, {score} mask {args.density}"] = variant
    return found


class Report:
    """Measures models with the task's suite; then prints one table and writes one JSON file."""

    def __init__(self, task: Task, args: WagleConfig, model_args: ModelConfig, qa: QAFormat):
        self.task, self.args, self.qa = task, args, qa
        self.sets = task.evaluation_sets(task.limit)
        self.results: dict[str, Any] = {}
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

    def add(self, label: str, model: Any) -> None:
        """Measure a model; the table gets a row."""
        self.results[label] = self._measure(model)

    def write(self) -> None:
        """Print the table and write `results.json` into the output folder."""
        if self.retrained is not None:
            self.results[RETRAINED] = self.retrained
        path = Path(self.args.output_dir) / "results.json"
        if self.args.process_index == 0:
            save_results(self.results, path)
            print(f"\n{results_table(self.results, self.task.headline)}\n\nAll numbers, answers and settings: {path}")
