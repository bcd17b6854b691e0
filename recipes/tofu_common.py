"""What the TOFU recipes share: their arguments, their data, and how a model is measured and reported."""

import copy
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from small_llama import small_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, TrlParser

from wagle_trainer import WagleConfig
from wagle_trainer.data import QAFormat, load_tofu_evaluation, retain_split_for
from wagle_trainer.data.dataset_arguments import DataArguments
from wagle_trainer.evaluation import evaluate_tofu, results_table, save_results


@dataclass
class TofuArguments(DataArguments):
    """Data, controls and evaluation of a TOFU recipe."""

    dataset_name: str = field(default="fictional", metadata=dict(fields(DataArguments)[0].metadata))
    controls: list[str] = field(
        default_factory=list,
        metadata={"help": "Further scores to run for comparison, such as random; none for no mask at all."},
    )
    retrained_model: str | None = field(
        default=None,
        metadata={"help": "A model that never saw the forget set: the reference of the forget quality."},
    )
    evaluation_samples: int = field(
        default=20,
        metadata={"help": "Rows of each evaluation set; published numbers need all of them, which is 0."},
    )
    evaluation_batch_size: int = field(default=32, metadata={"help": "Batch size of the evaluation."})


def parse_arguments(loss_type: str) -> tuple[TofuArguments, WagleConfig, ModelConfig]:
    """Arguments of the command line and of `--config`; with none at all, those of the bundled people.

    Without a model, the small Llamas are trained (or read from beside the output folder).
    """
    arguments = sys.argv[1:] or ["--config", str(Path(__file__).parent / "configs" / f"fictional_{loss_type}.yaml")]
    parser = TrlParser((TofuArguments, WagleConfig, ModelConfig))
    parser.set_defaults(loss_type=loss_type)
    tofu, args, model_args = parser.parse_args_and_config(arguments)
    if model_args.model_name_or_path is None:
        torch.set_num_threads(1)  # so small a model gains nothing from more, and then stands other load
        models = Path(args.output_dir).parent / "models"
        model_args.model_name_or_path = small_llama("full", models)
        tofu.retrained_model = small_llama(retain_split_for(tofu.forget_split), models)
    return tofu, args, model_args


def load_model(path: str, model_args: ModelConfig, device: Any) -> Any:
    """A model on its device."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=model_args.dtype).to(device)


def load_format(tofu: TofuArguments, model_args: ModelConfig) -> QAFormat:
    """How this model's tokenizer writes questions and answers."""
    return QAFormat.for_tokenizer(AutoTokenizer.from_pretrained(model_args.model_name_or_path), tofu.style)


def variants(tofu: TofuArguments, args: WagleConfig) -> dict[str, WagleConfig]:
    """One configuration for the score asked for and one for each control, by the label that it gets in the table."""
    if args.density == "auto" and set(tofu.controls) - {"none"}:
        raise ValueError('density="auto" differs from score to score: give controls the density that was picked.')
    found = {}
    for score in dict.fromkeys([args.attribution or "none", *tofu.controls]):
        variant = copy.copy(args)
        variant.attribution = None if score == "none" else score
        if score != args.attribution:
            variant.attribution_kwargs = None
        variant.output_dir = str(Path(args.output_dir) / score)
        found["after, no mask" if score == "none" else f"after, {score} mask {args.density}"] = variant
    return found


class Report:
    """Measures models on TOFU's questions; then prints one table and writes one JSON file."""

    def __init__(self, tofu: TofuArguments, args: WagleConfig, model_args: ModelConfig, qa: QAFormat):
        self.tofu, self.args, self.qa = tofu, args, qa
        self.questions = load_tofu_evaluation(tofu.dataset_name, tofu.forget_split, tofu.evaluation_samples or None)
        self.results: dict[str, Any] = {}
        self.retrained: dict[str, Any] | None = None
        if tofu.retrained_model:
            self.retrained = self._measure(load_model(tofu.retrained_model, model_args, args.device))

    def _measure(self, model: Any) -> dict[str, Any]:
        return evaluate_tofu(
            model,
            self.qa.tokenizer,
            self.questions,
            style=self.qa.style,
            batch_size=self.tofu.evaluation_batch_size,
            reference=self.retrained,
            across_processes=True,
        )

    def add(self, label: str, model: Any) -> None:
        """Measure a model; the table gets a row."""
        self.results[label] = self._measure(model)

    def write(self) -> None:
        """Print the table and write `results.json` into the output folder."""
        if self.retrained is not None:
            self.results["retrained without the forget set"] = self.retrained
        path = Path(self.args.output_dir) / "results.json"
        if self.args.process_index == 0:
            save_results(self.results, path)
            print(f"\n{results_table(self.results)}\n\nAll numbers, answers and settings: {path}")
