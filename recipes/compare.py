"""Does the mask matter? WAGLE, random, magnitude, gradient, SNIP and no mask, at equal densities, over seeds, tested.

python recipes/compare.py                                   # the bundled people, 3 seeds
python recipes/compare.py --config recipes/configs/llama_3.2_1b.yaml --learning_rates 5e-6 1e-5 2e-5 --seeds 0 1 2

Started with `python`: whole models run side by side, `--processes` of them. Every run is a file of its own, and what is
there is not run again: a stopped comparison goes on where it stopped, and seeds, densities, scores and learning rates
can be added later.
"""

import copy
import gc
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from compare_report import NO_MASK, RETRAINED, SUITE, forget_goal, picks, read_references, report
from small_llama import small_llama
from tofu_common import TofuArguments, load_model
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PrinterCallback
from transformers.trainer_utils import SaveStrategy
from trl import ModelConfig, TrlParser

from wagle_trainer import WagleConfig, WagleTrainer, WeightMask
from wagle_trainer.attribution import get_score
from wagle_trainer.data import QAFormat, load_tofu_evaluation, retain_split_for
from wagle_trainer.data.dataset_arguments import load_forget_and_retain
from wagle_trainer.evaluation import (
    NothingForgottenError,
    evaluate_tofu,
    get_attack,
    load_results,
    run_attacks,
    save_results,
)

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "compare_fictional.yaml"


@dataclass
class CompareArguments:
    """What is compared, and by what rule."""

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
            "help": "Of the order of the examples and the random mask; with the bundled people also of the model before "
            "unlearning and of the retrained one."
        },
    )
    learning_rates: list[float] = field(
        default_factory=list, metadata={"help": "Every variant runs with each; by default with learning_rate alone."}
    )
    forget_metric: str = field(
        default="forget_Q_A_Prob",
        metadata={"help": "The number that must reach the goal.", "choices": list(SUITE.forget_metrics)},
    )
    utility_metric: str = field(
        default="model_utility",
        metadata={"help": "The number to keep beside it.", "choices": list(SUITE.utility_metrics)},
    )
    forget_goal: float | None = field(
        default=None, metadata={"help": "Goal of the forget metric; by default it comes from forget_share."}
    )
    forget_share: float = field(
        default=0.9,
        metadata={"help": "Goal as a share of the forget metric's way from before unlearning to the retrained model."},
    )
    attacks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Attacks, such as relearning and quantization, on every variant that reaches the forget goal and, to hold "
            "it against, on the retrained model. For this, those variants are trained once more."
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


@dataclass(frozen=True)
class Task:
    """All learning rates of one mask, or of none, on one seed."""

    seed: int
    score: str | None = None
    density: float = 1.0

    @property
    def label(self) -> str:
        return NO_MASK if self.score is None else f"{self.score} {self.density:g}"


class Runs:
    """The runs of one comparison, each a file in one folder."""

    def __init__(self, compare: CompareArguments, tofu: TofuArguments, args: WagleConfig, model_args: ModelConfig):
        self.compare, self.tofu, self.args, self.model_args = compare, tofu, args, model_args
        self.folder = Path(args.output_dir)
        self.small = model_args.model_name_or_path is None  # a small Llama for each seed
        self.learning_rates = sorted(compare.learning_rates or [args.learning_rate])
        masks = [(score, density) for density in compare.densities for score in compare.scores]
        variants: list[tuple[Any, ...]] = [*masks, *([()] if compare.dense else [])]
        # The models that are not unlearned: one for each seed, or a single one for all.
        self.reference_seeds = compare.seeds if self.small else compare.seeds[:1]
        self.tasks = [Task(seed, *variant) for variant in variants for seed in compare.seeds]

    def path(self, seed: int, name: str, learning_rate: float | None = None) -> Path:
        """The file of a run, or (without a learning rate) of a model that was not unlearned."""
        rate = "" if learning_rate is None else f", learning rate {learning_rate:g}"
        return self.folder / "runs" / f"seed {seed}, {name}{rate}.json"

    def attack_path(self, attack: str, seed: int, name: str, learning_rate: float | None = None) -> Path:
        """The file of what an attack on the model of a run brought back."""
        strength = f" {self.compare.relearning_rate:g}" if attack.startswith("relearning") else ""
        return self.path(seed, f"{name}, {attack}{strength}", learning_rate)

    def model(self, seed: int, split: str = "full") -> str:
        """Where the model before unlearning is; with the bundled people trained at first use."""
        return (
            small_llama(split, self.folder.parent / "models", seed)
            if self.small
            else self.model_args.model_name_or_path
        )

    def train_model(self, seed_and_split: tuple[int, str]) -> None:
        self.model(*seed_and_split)

    def retrained(self, seed: int) -> str | None:
        return self.model(seed, retain_split_for(self.tofu.forget_split)) if self.small else self.tofu.retrained_model

    def check_settings(self) -> None:
        """Refuse to add to runs that were made with other settings."""
        changing = ("output_dir", "run_name", "logging_dir", "seed", "learning_rate", "density", "attribution")
        settings = {k: v for k, v in self.args.to_dict().items() if k not in changing}
        settings |= {f"tofu {k}": v for k, v in asdict(self.tofu).items()}
        settings |= {"model": self.model_args.model_name_or_path, "dtype": str(self.model_args.dtype)}
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
        tofu, retrained = self.tofu, self.path(seed if self.small else self.compare.seeds[0], RETRAINED)
        results = evaluate_tofu(
            model,
            qa.tokenizer,
            load_tofu_evaluation(tofu.dataset_name, tofu.forget_split, tofu.evaluation_samples or None),
            style=qa.style,
            batch_size=tofu.evaluation_batch_size,
            reference=retrained if retrained.exists() else None,
            progress=False,
        )
        results["settings"] |= {"seed": seed, **settings}
        return results

    def measure_references(self, seed: int) -> None:
        """Measure the retrained model and the one before unlearning."""
        for name, path in ((RETRAINED, self.retrained(seed)), ("before", self.model(seed))):
            if path is not None and not self.path(seed, name).exists():
                model, qa = load_model(path, self.model_args, self.args.device), self.format(seed)
                save_results(self.measure(model, seed, qa), self.path(seed, name))

    def format(self, seed: int) -> QAFormat:
        return QAFormat.for_tokenizer(AutoTokenizer.from_pretrained(self.model(seed)), self.tofu.style)

    def missing(self, task: Task) -> list[float]:
        """The learning rates that a task was not yet run with."""
        return [rate for rate in self.learning_rates if not self.path(task.seed, task.label, rate).exists()]

    def unlearn(self, task: Task, learning_rate: float, mask: WeightMask | None = None) -> WagleTrainer:
        """A trainer after training; the mask is computed unless it is given.

        Raises:
            FloatingPointError: the learning rate was too high.
        """
        qa = self.format(task.seed)
        forget, retain = load_forget_and_retain(self.tofu, qa)
        args = copy.copy(self.args)
        args.seed, args.learning_rate = task.seed, learning_rate
        args.attribution, args.density = task.score, task.density
        if task.score != self.args.attribution:
            args.attribution_kwargs = None  # they are that score's own
        args.attribution_samples = args.attribution_samples or len(forget)  # as many of each set
        args.output_dir, args.save_strategy = str(self.folder), SaveStrategy.NO  # only the measurements are kept
        trainer = WagleTrainer(
            model=load_model(self.model(task.seed), self.model_args, args.device),
            args=args,
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=qa.tokenizer,
            mask=mask,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer

    def run(self, task: Task) -> None:
        """Unlearn with every learning rate, each time from the same model with the same mask, and measure."""
        mask = None
        for rate in self.missing(task):
            settings: dict[str, Any] = {"learning_rate": rate}
            try:
                trainer = self.unlearn(task, rate, mask)
                mask = trainer.mask
                if mask is not None:
                    settings |= {"mask": mask.digest, "effective_density": mask.info.effective_density}
                    if task.seed == self.compare.seeds[0]:
                        mask.save_pretrained(self.folder / "masks" / task.label)
                results = self.measure(trainer.model, task.seed, self.format(task.seed), **settings)
                del trainer
            except FloatingPointError as error:  # the learning rate was too high: that is a result, too
                results = {"failed": str(error), "settings": {"seed": task.seed, **settings}}
            save_results(results, self.path(task.seed, task.label, rate))
            gc.collect()  # a trainer and its model refer to each other

    def attack(self, seed: int, name: str, rate: float | None, load_after: Callable[[], Any]) -> None:
        """Attack the model of a run, and keep what each attack brought back in a file beside the run."""
        paths = {attack: self.attack_path(attack, seed, name, rate) for attack in self.compare.attacks}
        missing = [attack for attack, path in paths.items() if not path.exists()]
        if not missing:
            return
        qa, sets = self.format(seed), load_tofu_evaluation(self.tofu.dataset_name, self.tofu.forget_split)
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
                style=qa.style,
                batch_size=self.tofu.evaluation_batch_size,
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

    def attack_variant(self, task_and_rate: tuple[Task, float]) -> None:
        task, rate = task_and_rate
        self.attack(task.seed, task.label, rate, lambda: self.unlearn(task, rate).model)


def prepare_process(threads: int | None) -> None:
    """Quiet, and with so many threads, in each process that makes runs."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if threads is not None:
        torch.set_num_threads(threads)


class Workers:
    """Processes that stay for the whole comparison, since starting one takes longer than a run of a small model."""

    def __init__(self, processes: int):
        self.pool = None
        if processes > 1:
            os.environ["OMP_NUM_THREADS"] = "1"  # read when a process starts
            self.pool = ProcessPoolExecutor(processes, get_context("spawn"), prepare_process, (1,))

    def map(self, function: Callable[[Any], None], items: Sequence[Any], title: str) -> None:
        """Call the function with every item."""
        with tqdm(total=len(items), desc=title, unit="task") as bar:
            if self.pool is None:
                for item in items:
                    function(item)
                    bar.update()
                return
            try:
                for done in as_completed([self.pool.submit(function, item) for item in items]):
                    done.result()
                    bar.update()
            except BaseException:
                self.pool.shutdown(cancel_futures=True)
                raise


def main() -> None:
    arguments = sys.argv[1:]
    if "--config" not in arguments and "--model_name_or_path" not in arguments:
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    parser = TrlParser((CompareArguments, TofuArguments, WagleConfig, ModelConfig))
    compare, tofu, args, model_args = parser.parse_args_and_config(arguments)
    if args.world_size > 1:
        raise SystemExit("recipes/compare.py runs whole models side by side: start it with python and --processes.")
    if model_args.use_peft:
        raise SystemExit("recipes/compare.py compares masks on the model's own weights: leave out --use_peft.")
    runs = Runs(compare, tofu, args, model_args)
    runs.check_settings()
    processes = compare.processes or (2 if args.device.type == "cpu" else 1)
    prepare_process(1 if runs.small else None)  # so small a model gains nothing from more threads

    workers = Workers(processes)
    if runs.small:
        splits = ("full", retain_split_for(tofu.forget_split))
        workers.map(runs.train_model, [(seed, split) for seed in compare.seeds for split in splits], "Models")
    workers.map(runs.measure_references, runs.reference_seeds, "References")
    goal = forget_goal(read_references(runs), compare)  # before the long part, in case there is none
    workers.map(runs.run, [task for task in runs.tasks if runs.missing(task)], "Variants")
    picked = picks(runs, goal)
    if compare.attacks:
        if runs.retrained(compare.seeds[0]) is not None:
            workers.map(runs.attack_retrained, runs.reference_seeds, "Attacks on the retrained")
        reached = [(task, p.learning_rate) for task in runs.tasks if (p := picked.get(task.label)) and p.reached]
        workers.map(runs.attack_variant, reached, "Attacks")
    report(runs, picked, goal)


if __name__ == "__main__":
    main()
