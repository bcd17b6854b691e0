"""The runs of a comparison: which there are, where each has its file, and how one is made."""

import copy
import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recipe import RETRAINED, load_model
from tasks import RecipeArguments, list_tasks, task_class
from transformers import AutoTokenizer, PrinterCallback
from transformers.trainer_utils import SaveStrategy
from trl import ModelConfig

from wagle_trainer import WagleConfig, WagleTrainer, WeightMask
from wagle_trainer.attribution import get_score
from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation import (
    NothingForgottenError,
    Suite,
    get_attack,
    get_suite,
    load_results,
    run_attacks,
    save_results,
)

NO_MASK = "no mask"


@dataclass
class CompareArguments:
    """What is compared, and by what rule."""

    task: str = field(default="tofu", metadata={"help": "What is forgotten.", "choices": list_tasks()})
    scores: list[str] = field(
        default_factory=lambda: ["wagle", "random", "magnitude", "gradient", "snip"],
        metadata={"help": "Scores whose masks are compared; the others are tested against random."},
    )
    densities: list[float] = field(
        default_factory=lambda: [0.05, 0.2, 0.8], metadata={"help": "Densities of every score's masks."}
    )
    dense: bool = field(default=True, metadata={"help": "Also train without a mask, and test against that."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={
            "help": "Of the order of the examples and the random mask; with the bundled example also of the reference "
            "model and of the retrained one."
        },
    )
    learning_rates: list[float] = field(
        default_factory=list, metadata={"help": "Every variant runs with each; by default with learning_rate alone."}
    )
    forget_metric: str = field(
        default="auto", metadata={"help": "The metric that must reach the goal; 'auto': the suite's first."}
    )
    utility_metric: str = field(default="auto", metadata={"help": "The metric to keep; 'auto': the suite's first."})
    forget_goal: float | None = field(
        default=None, metadata={"help": "Goal of the forget metric; by default it comes from forget_share."}
    )
    forget_share: float = field(
        default=0.9,
        metadata={
            "help": "Goal as a share of the forget metric's distance from the reference to the retrained model."
        },
    )
    attacks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Attacks, such as relearning and quantization, on every variant that reaches the forget goal and, for "
            "comparison, on the retrained model. For this, those variants are trained once more."
        },
    )
    relearning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the relearning attacks."})
    processes: int | None = field(
        default=None, metadata={"help": "Runs side by side; by default 2 on CPUs and 1 on a GPU."}
    )

    def __post_init__(self) -> None:
        for name in ("scores", "densities", "seeds", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice: {values}.")
            if not values and name != "learning_rates":
                raise ValueError(f"{name} is empty: give at least one.")
        for score in self.scores:
            get_score(score)
        for attack in self.attacks:
            get_attack(attack)
        if not all(0 < density <= 1 for density in self.densities):
            raise ValueError(f"densities must be in (0, 1], got {self.densities}.")
        self.forget_metric = _metric(self.forget_metric, self.suite.forget_metrics)
        if self.utility_metric == "auto":
            self.utility_metric = task_class(self.task).utility_metric or "auto"
        self.utility_metric = _metric(self.utility_metric, self.suite.utility_metrics)

    @property
    def suite(self) -> Suite:
        """The suite of the task."""
        return get_suite(task_class(self.task).suite)


@dataclass(frozen=True)
class Variant:
    """One mask, or none, on one seed: a run for each learning rate."""

    seed: int
    score: str | None = None
    density: float = 1.0

    @property
    def label(self) -> str:
        return NO_MASK if self.score is None else f"{self.score} {self.density:g}"


class Runs:
    """The runs of one comparison, each a file in one folder."""

    def __init__(self, compare: CompareArguments, data: RecipeArguments, args: WagleConfig, model_args: ModelConfig):
        self.compare, self.args, self.model_args = compare, args, model_args
        self.task = task_class(compare.task)(data)
        self.folder = Path(args.output_dir)
        self.small = model_args.model_name_or_path is None  # a small Llama for each seed
        self.learning_rates = sorted(compare.learning_rates or [args.learning_rate])
        masks = [(score, density) for density in compare.densities for score in compare.scores]
        variants: list[tuple[Any, ...]] = [*masks, *([()] if compare.dense else [])]
        # Reference and retrained models: one for each seed, or a single one for all.
        self.reference_seeds = compare.seeds if self.small else compare.seeds[:1]
        self.variants = [Variant(seed, *variant) for variant in variants for seed in compare.seeds]

    def path(self, seed: int, name: str, learning_rate: float | None = None) -> Path:
        """The file of a run, or (without a learning rate) of the reference or the retrained model."""
        rate = "" if learning_rate is None else f", learning rate {learning_rate:g}"
        return self.folder / "runs" / f"seed {seed}, {name}{rate}.json"

    def attack_path(self, attack: str, seed: int, name: str, learning_rate: float | None = None) -> Path:
        """The file of what an attack recovered from the model of a run."""
        strength = f" {self.compare.relearning_rate:g}" if attack.startswith("relearning") else ""
        return self.path(seed, f"{name}, {attack}{strength}", learning_rate)

    def model(self, seed: int) -> str:
        """Path of the reference model; with the bundled example it is trained at first use."""
        path = self.model_args.model_name_or_path
        return self.task.small_model(self.models, seed) if path is None else path

    def retrained(self, seed: int) -> str | None:
        """Path of the retrained model, if there is one."""
        return (
            self.task.small_model(self.models, seed, retrained=True) if self.small else self.task.data.retrained_model
        )

    @property
    def models(self) -> Path:
        return self.folder.parent / "models"

    def train_model(self, seed: int, retrained: bool) -> None:
        """Train a small Llama of the bundled example, unless it is there."""
        self.task.small_model(self.models, seed, retrained)

    def check_settings(self) -> None:
        """Refuse to add to runs that were made with other settings."""
        changing = ("output_dir", "run_name", "logging_dir", "seed", "learning_rate", "density", "attribution")
        settings = {k: v for k, v in self.args.to_dict().items() if k not in changing}
        settings |= {f"data {k}": v for k, v in asdict(self.task.data).items()}
        settings |= {
            "task": self.task.name,
            "model": self.model_args.model_name_or_path,
            "dtype": str(self.model_args.dtype),
        }
        path = self.folder / "runs" / "settings.json"
        if not path.exists():
            save_results(settings, path)
        before = load_results(path)
        differences = [f"{k} was {before.get(k)!r} and is {v!r}" for k, v in settings.items() if before.get(k) != v]
        if differences:
            raise ValueError(
                f"{self.folder} holds runs with other settings: {'; '.join(differences)}. Give another --output_dir."
            )

    def measure(self, model: Any, seed: int, qa: QAFormat, **settings: Any) -> dict[str, Any]:
        data, retrained = self.task.data, self.path(seed if self.small else self.compare.seeds[0], RETRAINED)
        results = self.task.evaluate(
            model,
            qa,
            self.task.evaluation_sets(qa, self.task.limit),
            batch_size=data.evaluation_batch_size,
            reference=retrained if retrained.exists() else None,
            progress=False,
        )
        results["settings"] |= {"seed": seed, **settings}
        return results

    def measure_references(self, seed: int) -> None:
        """Measure the retrained model and the reference model."""
        for name, path in ((RETRAINED, self.retrained(seed)), ("before", self.model(seed))):
            if path is not None and not self.path(seed, name).exists():
                model, qa = load_model(path, self.model_args, self.args.device), self.format(seed)
                save_results(self.measure(model, seed, qa), self.path(seed, name))

    def format(self, seed: int) -> QAFormat:
        path = self.model(seed)
        return self.task.data.qa_format(AutoTokenizer.from_pretrained(path), path)

    def missing(self, variant: Variant) -> list[float]:
        """The learning rates that a variant was not yet run with."""
        return [rate for rate in self.learning_rates if not self.path(variant.seed, variant.label, rate).exists()]

    def unlearn(self, variant: Variant, learning_rate: float, mask: WeightMask | None = None) -> WagleTrainer:
        """A trainer after training; the mask is computed unless it is given.

        Raises:
            FloatingPointError: the learning rate was too high.
        """
        qa = self.format(variant.seed)
        forget, retain = self.task.training_sets(qa)
        args = copy.copy(self.args)
        args.seed, args.learning_rate = variant.seed, learning_rate
        args.attribution, args.density = variant.score, variant.density
        if variant.score != self.args.attribution:
            args.attribution_kwargs = None  # options of the other score
        args.attribution_samples = args.attribution_samples or len(forget)  # as many of each set
        args.output_dir, args.save_strategy = str(self.folder), SaveStrategy.NO  # only the measurements are kept
        trainer = WagleTrainer(
            model=load_model(self.model(variant.seed), self.model_args, args.device),
            args=args,
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=qa.tokenizer,
            mask=mask,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer

    def run(self, variant: Variant) -> None:
        """Unlearn with every learning rate, each time from the same model with the same mask, and measure."""
        mask = None
        for rate in self.missing(variant):
            settings: dict[str, Any] = {"learning_rate": rate}
            try:
                trainer = self.unlearn(variant, rate, mask)
                mask = trainer.mask
                if mask is not None:
                    settings |= {"mask": mask.digest, "effective_density": mask.info.effective_density}
                    if variant.seed == self.compare.seeds[0]:
                        mask.save_pretrained(self.folder / "masks" / variant.label)
                results = self.measure(trainer.model, variant.seed, self.format(variant.seed), **settings)
                del trainer
            except FloatingPointError as error:  # the learning rate was too high: that is a result, too
                results = {"failed": str(error), "settings": {"seed": variant.seed, **settings}}
            save_results(results, self.path(variant.seed, variant.label, rate))
            gc.collect()  # a trainer and its model refer to each other

    def attack(self, seed: int, name: str, rate: float | None, load_after: Callable[[], Any]) -> None:
        """Attack the model of a run, and keep what each attack recovered in a file beside the run."""
        paths = {attack: self.attack_path(attack, seed, name, rate) for attack in self.compare.attacks}
        missing = [attack for attack, path in paths.items() if not path.exists()]
        if not missing:
            return
        qa = self.format(seed)
        sets = self.task.attack_sets(qa)
        rate_of_attack = {"learning_rate": self.compare.relearning_rate}
        options = {"relearning": rate_of_attack, "relearning_unrelated": {"data": sets["retain"], **rate_of_attack}}
        try:
            found = run_attacks(
                load_model(self.model(seed), self.model_args, self.args.device),
                load_after(),
                qa.tokenizer,
                sets["forget"],
                missing,
                options={attack: options[attack] for attack in missing if attack in options},
                qa_format=qa,
                batch_size=self.task.data.evaluation_batch_size,
                seed=seed,
                progress=False,
            )
        except NothingForgottenError:  # the goal may be about another number than the attacks' measure
            found = {}
        for attack in missing:
            save_results(found.get(attack, {}), paths[attack])  # empty: by its measure, nothing was forgotten
        gc.collect()

    def attack_retrained(self, seed: int) -> None:
        path = self.retrained(seed)
        assert path is not None, "only called where there is one"
        self.attack(seed, RETRAINED, None, lambda: load_model(path, self.model_args, self.args.device))

    def attack_variant(self, variant: Variant, rate: float) -> None:
        self.attack(variant.seed, variant.label, rate, lambda: self.unlearn(variant, rate).model)


def _metric(name: str, known: Mapping[str, Any]) -> str:
    """The metric `name`; the suite's first for "auto".

    Raises:
        ValueError: the suite has no such metric.
    """
    if name == "auto":
        return next(iter(known))
    if name not in known:
        raise ValueError(f"The suite has no metric {name!r} for this. It has: {', '.join(known)}.")
    return name
