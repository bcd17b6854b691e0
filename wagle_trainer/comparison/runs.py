"""The runs of a comparison: which there are, where each has its file, and how one is made."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.trainer_utils import SaveStrategy

from wagle_trainer.comparison.arguments import ComparisonArguments
from wagle_trainer.comparison.learning_rate_rule import RETRAINED
from wagle_trainer.config import WagleConfig
from wagle_trainer.evaluation import NothingForgottenError, load_results, run_attacks, save_results
from wagle_trainer.losses.objective import Objective
from wagle_trainer.trainer import WagleTrainer
from wagle_trainer.utils.secrets import redacted

if TYPE_CHECKING:
    from wagle_trainer.data.qa_format import QAFormat
    from wagle_trainer.masking import WeightMask

NO_MASK = "no mask"
SEED = "{seed}"  # in a model's path: one model for each seed


class Task(Protocol):
    """What is forgotten, and how it is measured.

    Attributes:
        name: of the task.
        data: its arguments, a dataclass with `retrained_model` and `evaluation_batch_size`.
        limit: rows of each evaluation set; None for all.
        headline: the columns of the table.
    """

    name: Any
    data: Any
    limit: int | None
    headline: Mapping[str, tuple[str, str]]

    def training_sets(self, qa: Any) -> tuple[Any, Any]:
        """The forget and the retain set in a TRL format."""

    def evaluation_sets(self, qa: Any, limit: int | None) -> Any:
        """What `evaluate` measures on."""

    def evaluate(self, model: Any, qa: Any, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        """Measure a model."""

    def attack_sets(self, qa: Any) -> Mapping[str, Any]:
        """Rows that attacks measure on ("forget") and relearn from ("retain")."""


@dataclass(frozen=True)
class Variant:
    """One mask, or none, with one objective on one seed: a run for each learning rate.

    Attributes:
        seed: of the order of the examples and the random mask.
        score: of the mask; None without a mask.
        density: of the mask.
        objective: None for the configuration's.
    """

    seed: int
    score: str | None = None
    density: float = 1.0
    objective: str | None = None

    @property
    def label(self) -> str:
        """The name of its row."""
        mask = NO_MASK if self.score is None else f"{self.score} {self.density:g}"
        return mask if self.objective is None else f"{self.objective}, {mask}"

    def with_mask(self, score: str | None) -> Variant:
        """The same with a mask of another score, or without one.

        Args:
            score: the score; None for no mask.
        """
        return replace(self, score=score, density=1.0 if score is None else self.density)


class Runs:
    """The runs of one comparison, each a file in one folder."""

    def __init__(self, compare: ComparisonArguments, task: Any, args: WagleConfig, model_args: Any):
        self.compare, self.args, self.model_args, self.task = compare, args, model_args, task
        self.folder = Path(args.output_dir)
        self.learning_rates = sorted(compare.learning_rates or [args.learning_rate])
        masks = [(score, density) for density in compare.densities for score in compare.scores]
        variants = [*masks, *([(None, 1.0)] if compare.dense else [])]
        # Reference and retrained models: one for each seed, or a single one for all.
        self.reference_seeds = compare.seeds if self.model_for_each_seed else compare.seeds[:1]
        objectives: list[str | None] = [*compare.objectives] or [None]
        self.variants = [
            Variant(seed, *variant, objective)
            for objective in objectives
            for variant in variants
            for seed in compare.seeds
        ]
        for objective in compare.objectives:  # refuses settings that do not fit, before any run
            settings: Any = self._arguments(Variant(0, objective=objective), 0.0)
            Objective.from_arguments(
                settings.loss_type, settings.loss_kwargs, settings.forget_weight, settings.retain_weight
            )

    @property
    def model_for_each_seed(self) -> bool:
        """Whether each seed has a reference model of its own."""
        return SEED in (self.model_args.model_name_or_path or "")

    def path(self, seed: int, name: str, learning_rate: float | None = None) -> Path:
        """The file of a run, or (without a learning rate) of the reference or the retrained model.

        Args:
            seed: of the run.
            name: of the variant or of the reference.
            learning_rate: of the run; None for a reference.
        """
        rate = "" if learning_rate is None else f", learning rate {learning_rate:g}"
        return self.folder / "runs" / f"seed {seed}, {name}{rate}.json"

    def attack_path(self, attack: str, seed: int, name: str, learning_rate: float | None = None) -> Path:
        """The file of what an attack recovered from the model of a run.

        Args:
            attack: its name.
            seed: of the run.
            name: of the variant or of the reference.
            learning_rate: of the run; None for a reference.
        """
        strength = f" {self.compare.relearning_rate:g}" if attack.startswith("relearning") else ""
        return self.path(seed, f"{name}, {attack}{strength}", learning_rate)

    def model(self, seed: int) -> str:
        """Path of the reference model.

        Args:
            seed: of the run.
        """
        return self.model_args.model_name_or_path.replace(SEED, str(seed))

    def retrained(self, seed: int) -> str | None:
        """Path of the retrained model, if there is one.

        Args:
            seed: of the run.
        """
        path = self.task.data.retrained_model
        return None if path is None else path.replace(SEED, str(seed))

    @property
    def models(self) -> Path:
        """Folder of models that comparisons share."""
        return self.folder.parent / "models"

    def check_settings(self) -> None:
        """Refuse to add to runs that were made with other settings."""
        changing = ["output_dir", "run_name", "logging_dir", "seed", "learning_rate", "density", "attribution"]
        changing += ["loss_type"] if self.compare.objectives else []
        settings: dict[str, Any] = {k: v for k, v in self.args.to_dict().items() if k not in changing}
        data = asdict(self.task.data)
        data.pop("save_generations", None)  # changes no number
        settings |= {f"data {k}": v for k, v in data.items()}
        settings |= {
            "task": self.task.name,
            "model": self.model_args.model_name_or_path,
            "dtype": str(self.model_args.dtype),
        }
        of_objectives: Any = self.compare.objective_settings
        settings |= {f"objective {name}": of_objectives.get(name, {}) for name in self.compare.objectives}
        settings = redacted(settings)  # paths and addresses may hold credentials
        path = self.folder / "runs" / "settings.json"
        if not path.exists():
            save_results(settings, path)
        before = redacted(load_results(path))
        added = {k: v for k, v in settings.items() if k.startswith("objective ") and k not in before}
        if added:
            before |= added
            save_results(before, path)
        differences = [f"{k} was {before.get(k)!r} and is {v!r}" for k, v in settings.items() if before.get(k) != v]
        if differences:
            raise ValueError(
                f"{self.folder} holds runs with other settings: {'; '.join(differences)}. Give another --output_dir."
            )

    def measure(self, model: Any, seed: int, qa: QAFormat, **settings: Any) -> dict[str, Any]:
        """Measure a model with the task and its limits.

        Args:
            model: a causal language model.
            seed: of the run.
            qa: how questions and answers become text.
        """
        data, retrained = (
            self.task.data,
            self.path(seed if self.model_for_each_seed else self.compare.seeds[0], RETRAINED),
        )
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
        """Measure the retrained model and the reference model.

        Args:
            seed: of the run.
        """
        for name, path in ((RETRAINED, self.retrained(seed)), ("before", self.model(seed))):
            if path is not None and not self.path(seed, name).exists():
                model, qa = self._load(path), self.format(seed)
                save_results(self.measure(model, seed, qa), self.path(seed, name))

    def format(self, seed: int) -> QAFormat:
        """Return how questions and answers become text for the model of a seed.

        Args:
            seed: of the run.
        """
        path = self.model(seed)
        return self.task.data.qa_format(AutoTokenizer.from_pretrained(path), path)

    def missing(self, variant: Variant) -> list[float]:
        """The learning rates that a variant was not yet run with.

        Args:
            variant: whose runs are looked for.
        """
        return [rate for rate in self.learning_rates if not self.path(variant.seed, variant.label, rate).exists()]

    def unlearn(self, variant: Variant, learning_rate: float, mask: WeightMask | None = None) -> WagleTrainer:
        """A trainer after training; the mask is computed unless it is given.

        Args:
            variant: what is trained.
            learning_rate: of the run.
            mask: to use; computed if None.

        Raises:
            FloatingPointError: the learning rate was too high.
        """
        qa = self.format(variant.seed)
        forget, retain = self.task.training_sets(qa)
        args = self._arguments(variant, learning_rate)
        args.attribution_samples = args.attribution_samples or len(forget)  # as many of each set
        args.output_dir, args.save_strategy = str(self.folder), SaveStrategy.NO  # only the measurements are kept
        args.disable_tqdm = (
            True  # the comparison has a bar of its own; logs of several runs at once tell no one anything
        )
        trainer = WagleTrainer(
            model=self._load(self.model(variant.seed)),
            args=args,
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=qa.tokenizer,
            mask=mask,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer

    def _arguments(self, variant: Variant, learning_rate: float) -> WagleConfig:
        args = copy.copy(self.args)
        args.seed, args.learning_rate = variant.seed, learning_rate
        args.attribution, args.density = variant.score, variant.density
        args.summary_rows = 0  # the report says it, and the next steps it names are not those of a comparison
        if variant.score != self.args.attribution:
            args.attribution_kwargs = None  # options of the other score
        if variant.objective is not None:
            if variant.objective != self.args.loss_type:
                args.loss_kwargs = None  # options of the other objective
            args.loss_type = variant.objective
            settings: Any = self.compare.objective_settings
            for name, value in settings.get(variant.objective, {}).items():
                setattr(args, name, value)
        return args

    def _load(self, path: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=self.model_args.dtype).to(self.args.device)

    def run(self, variant: Variant) -> None:
        """Unlearn with every learning rate, each time from the same model with the same mask, and measure.

        Args:
            variant: what is trained.
        """
        mask = None
        for rate in self.missing(variant):
            settings: dict[str, Any] = {"learning_rate": rate}
            try:
                start = time.perf_counter()
                trainer = self.unlearn(variant, rate, mask)
                settings["seconds"] = time.perf_counter() - start
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
        """Attack the model of a run, and keep what each attack recovered in a file beside the run.

        Args:
            seed: of the run.
            name: of the variant.
            rate: its learning rate.
            load_after: returns the attacked model.
        """
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
                self._load(self.model(seed)),
                load_after(),
                qa.tokenizer,
                sets["forget"],
                missing,
                options={attack: options[attack] for attack in missing if attack in options},
                qa_format=self.attack_format(qa),
                batch_size=self.task.data.evaluation_batch_size,
                seed=seed,
                progress=False,
            )
        except NothingForgottenError:  # the goal may be about another number than the attacks' measure
            found = {}
        for attack in missing:
            save_results(found.get(attack, {}), paths[attack])  # empty: by its measure, nothing was forgotten
        gc.collect()

    def attack_format(self, qa: QAFormat) -> QAFormat:
        """How the rows of the task's `attack_sets` become text.

        Args:
            qa: how questions and answers become text in the evaluation.
        """
        return qa

    def attack_retrained(self, seed: int) -> None:
        """Attack the retrained model of a seed.

        Args:
            seed: of the run.
        """
        path = self.retrained(seed)
        assert path is not None, "only called where there is one"
        self.attack(seed, RETRAINED, None, lambda: self._load(path))

    def attack_variant(self, variant: Variant, rate: float) -> None:
        """Attack the models of a variant, trained at one learning rate.

        Args:
            variant: what was trained.
            rate: its learning rate.
        """
        self.attack(variant.seed, variant.label, rate, lambda: self.unlearn(variant, rate).model)
