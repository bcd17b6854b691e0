"""How few weights are enough to forget, and does it matter which? Scores by densities by seeds, each at its best rate.

python recipes/patch_size.py                                  # the bundled people, a small Llama, under 10 minutes
python recipes/patch_size.py --config recipes/configs/patch_size_people_study.yaml  # more scores, densities and seeds
python recipes/patch_size.py --task wmdp                      # or copyright, detox: their bundled examples
python recipes/patch_size.py --task facts --model SMOLLM2_FOLDER --output_dir outputs/patch_size
python recipes/patch_size.py --task tofu --model SMOLLM2_FOLDER --dataset_name TOFU_FOLDER --output_dir outputs/patch_size

The tasks are those of the other recipes, with their arguments; "people" is tofu with the bundled people.

Each run is one row of `results.json` in the output folder. What is there is not run again: a stopped study goes on where
it stopped, and seeds, densities, scores, tasks and objectives can be added later.

The learning rate is chosen by one rule on the first seed, for each score and density. The best rate has the smallest
shortfall from the goal: what is left of the forget set above the goal, and what the retain and the unseen set lose beyond
`utility_loss`, each as a share of what the reference model knows. A mask may also lose what all weights lose. A tenth of
all that is left and lost is added, which decides between rates that reach the goal.

The grid is 1e-6, 3e-6, 1e-5, ..., 10. The search begins at the package's `starting_rate`, with base_rate for all weights.
It goes up until a rate is clearly worse than the best so far (by 0.1) or keeps next to nothing, and down until one is
worse than the best. Then it tries the rate halfway (in the logarithm) between the best one and its better neighbour. The
other seeds use the best rate. One at the end of what was tried is reported as such.

--rerun 3 runs three rows of the file again and compares them: the same versions on the same kind of machine give the same
digests.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from os.path import abspath  # "." has a name then, and a link keeps its own
from pathlib import Path
from typing import Any

import datasets
import torch
from patch_size_groups import shortfall
from patch_size_masks import NO_MASK, check_label, first_rate, spread
from patch_size_report import write_report
from patch_size_runs import FAILURES, Bench, Rows, changed, differences, digest_of, environment
from recipe import on_bundled_config, refusals, task_named
from study_arguments import check_lists, check_model, check_numbers, check_texts
from tasks import RecipeArguments, Task, list_tasks, task_class
from tasks.subject import load_shared
from transformers.utils import logging
from trl import TrlParser

from wagle_trainer.losses import get_loss

GRID = [float(f"{digit}e{exponent}") for exponent in range(-6, 1) for digit in (1, 3)] + [10.0]
CLEARLY = 0.1
LOST = 1.5  # badness of a run that kept next to nothing: no higher rate keeps more
# Names that rows have for a task with its bundled example, and defaults of tasks that differ in this study.
BUNDLED = {"tofu": "people"}
DEFAULTS: dict[str, dict[str, Any]] = {"facts": {"relations": ["capital"]}, "tofu": {"style": "plain"}}


@dataclass
class PatchSizeArguments:
    """What is compared."""

    output_dir: str = field(metadata={"help": "Folder of results.json, the figure and the table."})
    task: str = field(
        default="people",
        metadata={
            "help": "What is forgotten; people is tofu with the bundled people.",
            "choices": [*list_tasks(), "people"],
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "The model: folder or hub id; by default a small Llama for each seed. With TOFU's questions it is "
            "taught them first."
        },
    )
    model_name: str | None = field(default=None, metadata={"help": "Its name in the rows; by default the folder's."})
    objectives: list[str] = field(
        default_factory=lambda: ["npo"], metadata={"help": "Objectives, one after the other."}
    )
    scores: list[str] = field(
        default_factory=lambda: ["random", "gradient", "snip", "wagle:1e-6"],
        metadata={
            "help": "Scores; wagle with its gamma: wagle:1e-6, wagle:balanced. snip-body: without the embeddings and the "
            "head."
        },
    )
    densities: list[float] = field(
        default_factory=lambda: [1e-3, 1e-2, 1e-1],
        metadata={"help": "Densities of the masks, in the order in which they are run; all weights come first."},
    )
    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'In place of scores, densities and a search for learning rates: "snip 1e-3 3e-3" is score, density and '
            'learning rate of a run that all seeds make, "none 1 1e-4" trains all weights.'
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "The first one chooses the learning rates."}
    )
    examples: int = field(default=16, metadata={"help": "Size of the forget set, at least 2: one half is relearned."})
    steps: int = field(default=12, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=8, metadata={"help": "Forget examples, and retain examples, in each step."})
    relearning_rates: list[float] = field(
        default_factory=lambda: [2e-5, 5e-5],
        metadata={"help": "Learning rates of the relearning attack; the worst counts."},
    )
    relearning_steps: int = field(
        default=6, metadata={"help": "Steps of the relearning attack, on half the forget set."}
    )
    forget_share: float = field(
        default=0.9,
        metadata={
            "help": "Goal: share of the way from the reference model to a retrained one, or to zero without one."
        },
    )
    utility_loss: float = field(
        default=0.05, metadata={"help": "How much probability retained and unseen answers may lose at most."}
    )
    count_missing: bool = field(
        default=False, metadata={"help": "Say how many of the planned runs the file lacks, in place of all else."}
    )
    rerun: int = field(
        default=0, metadata={"help": "Run this many rows of the file again and compare, in place of all else."}
    )
    beta: float = field(default=1.0, metadata={"help": "NPO's beta; the paper's 0.1 suits long answers."})
    retain_weight: float = field(default=1.0, metadata={"help": "Factor of the retain loss."})
    base_rate: float = field(default=3e-5, metadata={"help": "Learning rate where the search begins for all weights."})
    max_rates: int = field(default=6, metadata={"help": "Learning rates that are tried at most for one mask."})

    def __post_init__(self) -> None:
        check_texts(self, ["output_dir", "task", "model", "model_name", "objectives", "scores", "runs"])
        class_of(self.task)
        if self.model is not None:
            check_model(self.model)
        check_numbers(
            self,
            ["densities"],
            lambda value: 0 < value < 1,
            "between 0 and 1; all weights are run without being named",
        )
        check_numbers(self, ["relearning_rates", "base_rate", "beta"], lambda value: value > 0, "above 0")
        check_numbers(self, ["retain_weight"], lambda value: value >= 0, "at least 0")
        check_numbers(self, ["forget_share"], lambda value: 0 < value <= 1, "above 0 and at most 1")
        check_numbers(self, ["utility_loss"], lambda value: 0 <= value <= 1, "from 0 to 1")
        check_numbers(self, ["examples"], lambda value: value >= 2, "at least 2", whole=True)
        counts = ["steps", "batch_size", "relearning_steps", "max_rates"]
        check_numbers(self, counts, lambda value: value >= 1, "at least 1", whole=True)
        check_numbers(self, ["seeds", "rerun"], lambda value: value >= 0, "at least 0", whole=True)
        check_lists(self, ["objectives", "scores", "densities", "seeds", "relearning_rates"])
        check_lists(self, ["runs"], may_be_empty=True)
        for objective in self.objectives:
            get_loss(objective)
        for label in [*self.scores, *(label for label, _, _ in map(given_run, self.runs) if label != NO_MASK)]:
            check_label(label)


def given_run(text: str) -> tuple[str, float, float]:
    """Label, density and learning rate of one of `runs`.

    Raises:
        ValueError: the text is something else.
    """
    try:
        label, density, rate = text.split()
        values = float(density), float(rate)
    except ValueError:
        raise ValueError(
            f'{text!r} in runs must be a score, a density and a learning rate: "snip 1e-3 3e-3".'
        ) from None
    if not (0 < values[0] <= 1 and 0 < values[1] < math.inf and (values[0] == 1) == (label == NO_MASK)):
        raise ValueError(
            f"{text!r} in runs: a density below 1, and a rate above 0; all weights are {NO_MASK!r}, of density 1."
        )
    return label, *values


def class_of(task: str) -> type[Task]:
    """The task's class; that of tofu for "people".

    Raises:
        ValueError: there is none; the message lists the tasks.
    """
    known = [*list_tasks(), "people"]
    if task not in known:
        raise ValueError(f"Unknown task {task!r}. Known: {', '.join(sorted(known))}.")
    return task_class("tofu" if task == "people" else task)


class Study:
    """The runs of one task.

    Args:
        args: what is compared.
        rows: of earlier runs.
        data: the task's arguments; None for its bundled example.

    Raises:
        ValueError: the rows were made with other settings.
    """

    def __init__(self, args: PatchSizeArguments, rows: Rows, data: RecipeArguments | None = None):
        self.args, self.rows = args, rows
        self.folder = Path(args.output_dir)
        kind = class_of(args.task)
        self.task = kind(data or kind.arguments(**DEFAULTS.get(kind.name, {})))
        bundled = self.task.data.dataset_name == "fictional"
        self.task_name = BUNDLED.get(kind.name, kind.name) if bundled else kind.name
        self.model_name = args.model_name or (Path(abspath(args.model)).name if args.model else "small-llama")
        self._benches: dict[int, Bench] = {}
        self._dense: dict[tuple[str, int], dict[str, Any]] = {}  # by objective and seed: the run with all weights
        self._warned = False
        if args.model is None:
            torch.set_num_threads(1)  # so small a model gains nothing from more
        self._check_settings()
        self.environment = environment()

    def _check_settings(self) -> None:
        """Refuse to add to rows of the same task that were made with other settings."""
        names = (
            *("examples", "steps", "batch_size", "beta", "retain_weight"),
            *("relearning_rates", "relearning_steps", "forget_share"),
        )
        settings = {name: getattr(self.args, name) for name in names}
        data = asdict(self.task.data)
        # What files from before it could be chosen were made with.
        earlier = {"settings": {"retain_weight": 1.0}, "data": asdict(self.task.arguments())}
        if data["dataset_name"] and Path(data["dataset_name"]).is_dir():  # where it lies differs by machine
            data["dataset_name"] = Path(data["dataset_name"]).resolve().name
        found = []
        for kind, values in (("settings", settings), ("data", data)):
            kept = self.rows.content.setdefault(kind, {}).setdefault(f"{self.model_name}, {self.task_name}", values)
            for name, value in earlier[kind].items():
                kept.setdefault(name, value)
            found += changed(kept, values)
        if found:
            raise ValueError(
                f"{self.rows.path} holds rows with other settings: {'; '.join(found)}. Give another --output_dir."
            )

    def check_model(self) -> None:
        """Refuse a given model whose weights differ from those of the rows under its name.

        A model that the task teaches first is compared when it is there.

        Raises:
            ValueError: see above.
        """
        kept = self.rows.find("references", model=self.model_name, task=self.task_name)
        if self.args.model is not None and not self.task.teaches_given_model and kept is not None:
            self._compare_weights(kept, digest_of(load_shared(self.args.model)), trained=False)

    def _compare_weights(self, kept: dict[str, Any], digest: str, trained: bool) -> None:
        """Compare the weights of a reference model with those of a row, which others may have trained."""
        if kept.get("weights_digest", digest) == digest:
            return
        rows = f"{self.rows.path} holds rows of {self.model_name!r} (task {self.task_name})"
        if not trained:
            raise ValueError(
                f"{rows}, and the weights of {self.args.model} are other ones: it is another model. Give it another "
                "--model_name, or another --output_dir."
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{rows} whose reference model was trained elsewhere: the one that was trained here differs in its "
                "weights. New rows are those of the model here. If another model was taught, give it another --model_name.",
                stacklevel=3,
            )

    def prepare(self) -> None:
        """Make and measure the first seed's model, where it is going to run: what is wrong shows before any run."""
        if not self.args.runs or self.missing()[0]:
            self.bench(self.args.seeds[0])
            self.reference(self.args.seeds[0])

    def bench(self, seed: int) -> Bench:
        """Model and sets of a seed; those of a given model are kept, of trained ones the last."""
        if seed not in self._benches:
            args, cache = self.args, self.folder / "models"
            reference = self.task.reference_model(args.model, cache, seed, args.examples)
            if reference != args.model:
                self._benches.clear()
            task = self.task.subject(reference, args.model, cache, seed, args.examples)
            bench = Bench(
                task,
                seed,
                steps=args.steps,
                batch_size=args.batch_size,
                relearning_rates=args.relearning_rates,
                relearning_steps=args.relearning_steps,
                folder=self.folder,
                beta=args.beta,
                retain_weight=args.retain_weight,
            )
            kept = self.rows.find("references", model=self.model_name, task=self.task_name, seed=seed)
            if kept is not None:
                self._compare_weights(kept, bench.digest(), trained=reference != args.model)
            self._benches[seed] = bench
        return self._benches[seed]

    def reference(self, seed: int) -> dict[str, Any]:
        """The measurements of the reference model."""
        key = {"model": self.model_name, "task": self.task_name, "seed": seed}
        found = self.rows.find("references", **key)
        if found is None:
            bench = self.bench(seed)
            found = key | bench.references() | {"details": bench.task.details, "weights_digest": bench.digest()}
            self.rows.add(found, self.environment, "references")
        return found

    def goal(self, seed: int) -> float:
        """Highest forget probability that counts as forgotten."""
        reference = self.reference(seed)
        floor = reference.get("retrained_forget", 0.0)
        return reference["forget"] - self.args.forget_share * (reference["forget"] - floor)

    def run(
        self, objective: str, label: str, density: float, rate: float, seed: int, attack: bool = True
    ) -> dict[str, Any]:
        """The row of a run; it runs if there is none, or none that was attacked where that is wanted."""
        score, gamma = self._score(label)
        key = {
            "model": self.model_name,
            "task": self.task_name,
            "objective": objective,
            "score": score,
            "gamma": gamma,
            "density": density,
            "learning_rate": rate,
            "seed": seed,
        }
        goal = self.goal(seed)
        found = self.rows.find(**key)
        if found is None or (attack and not found.keys() & {"relearned", *FAILURES}):
            bench = self.bench(seed)
            later = bench.attack_later(rate) if found is not None else None
            if found is not None and later is not None:
                found |= later
                self.rows.save()
            else:
                if found is not None:
                    self.rows.rows.remove(found)
                found = key | bench.run(objective, score, gamma, density, rate, attack) | {"goal": goal}
                self.rows.add(found, self.environment)
            print(describe(found), flush=True)
        return found

    @staticmethod
    def _score(label: str) -> tuple[str, float | str | None]:
        return (NO_MASK, None) if label == NO_MASK else spread(label)

    def rerun(self, count: int) -> list[str]:
        """Run rows again that the arguments choose; what differs from the file, one line for each row.

        Args:
            count: rows of this task, model, scores, densities and seeds, spread over the file.

        Raises:
            ValueError: there is none.
        """
        args = self.args
        named = {(*self._score(label), density, rate) for label, density, rate in map(given_run, args.runs)}
        scores = {(NO_MASK, None), *map(spread, args.scores)}

        def chosen(row: dict[str, Any]) -> bool:
            score = (row["score"], row["gamma"])
            if named:
                return (*score, row["density"], row["learning_rate"]) in named
            return score in scores and (row["score"] == NO_MASK or row["density"] in args.densities)

        rows = [
            row
            for row in self.rows.rows
            if (row["model"], row["task"]) == (self.model_name, self.task_name)
            and row["objective"] in args.objectives
            and row["seed"] in args.seeds
            and chosen(row)
        ]
        if not rows:
            raise ValueError(f"{self.rows.path} holds no row of these arguments that could be run again.")
        lines = []
        for row in rows[:: max(1, len(rows) // count)][:count]:
            bench = self.bench(row["seed"])
            objective, score, gamma, density, rate = (
                row[name] for name in ("objective", "score", "gamma", "density", "learning_rate")
            )
            attacked = "relearned" in row or "attack_failed" in row
            again = bench.run(objective, score, gamma, density, rate, attacked)
            bench.forget_runs()
            found = differences(row, again)
            same = self.rows.content["environments"][row["environment"]] == self.environment
            lines.append(
                f"{describe(row)} {'; '.join(found) or 'comes out the same'}"
                + ("" if same or not found else " (the row was made with other versions)")
            )
        return lines

    def missing(self) -> tuple[int, int]:
        """How many of the runs that the arguments name are missing, and how many they are; failed ones are done.

        A run is an objective, a score, a density and a seed, at whatever learning rate; of `runs` also at that rate. It is
        there once it was attacked.
        """
        outcomes = self._outcomes()
        return outcomes.count("missing"), len(outcomes)

    def progress(self) -> str:
        """One line: how many of the runs are missing, and how many failed."""
        outcomes = self._outcomes()
        failed = outcomes.count("failed")
        said = f"; {failed} failed: their loss, or that of the attack, was not finite" if failed else ""
        return f"{outcomes.count('missing')} of the {len(outcomes)} runs that were planned are missing{said}."

    def _outcomes(self) -> list[str]:
        """What became of each run that the arguments name: "done", "failed" or "missing"."""
        args = self.args
        names = ["objective", "score", "gamma", "density", "seed"]
        masks: list[tuple[Any, ...]] = [(label, density) for label in args.scores for density in args.densities]
        masks.append((NO_MASK, 1.0))
        if args.runs:
            names, masks = [*names, "learning_rate"], [given_run(text) for text in args.runs]
        wanted = {
            (objective, *self._score(label), density, seed, *rate): (label, density, seed)
            for objective in args.objectives
            for label, density, *rate in masks
            for seed in args.seeds
        }
        there: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in self.rows.rows:
            if (row["model"], row["task"]) == (self.model_name, self.task_name):
                there.setdefault(tuple(row[name] for name in names), []).append(row)
        return [self._outcome(there.get(key, []), *run) for key, run in wanted.items()]

    def _outcome(self, rows: list[dict[str, Any]], label: str, density: float, seed: int) -> str:
        """What became of one run, by its rows at all learning rates."""
        if any("relearned" in row for row in rows):
            return "done"
        if any("attack_failed" in row for row in rows):
            return "failed"
        failed = {row["learning_rate"] for row in rows if "failed" in row}
        if not failed:
            return "missing"
        searches = not self.args.runs and seed == self.args.seeds[0]
        return "missing" if searches and not self._all_failed(rows, failed, label, density) else "failed"

    def _all_failed(self, rows: list[dict[str, Any]], failed: set[float], label: str, density: float) -> bool:
        """Whether the search for a learning rate is over, and every rate failed."""
        tried = set()

        def badness(rate: float) -> float:
            tried.add(rate)
            return math.inf

        search_rate(badness, label, density, self.args.max_rates, self.args.base_rate)
        return len(failed) == len(rows) and tried <= failed

    def badness(self, row: dict[str, Any]) -> float:
        """What the learning rate is chosen by: see the head of this file."""
        dense = self._dense.get((row["objective"], row["seed"])) if row["score"] != NO_MASK else None
        return shortfall(row, self.reference(row["seed"]), self.args.utility_loss, dense)

    def best_rate(self, objective: str, label: str, density: float) -> tuple[float, bool]:
        """The chosen learning rate, and whether it lies at the edge of those that were tried."""

        def badness(rate: float) -> float:
            return self.badness(self.run(objective, label, density, rate, first, attack=False))

        first = self.args.seeds[0]
        self.bench(first).forget_runs()
        best = search_rate(badness, label, density, self.args.max_rates, self.args.base_rate)
        row = self.run(objective, label, density, best[0], first)
        if label == NO_MASK:
            self._dense[objective, first] = row
        self.bench(first).forget_runs()
        return best

    def block(self, objective: str, labels: list[str], density: float) -> None:
        """All scores at one density: learning rates on the first seed, then all seeds."""
        rates = {label: self.best_rate(objective, label, density)[0] for label in labels}
        for seed in self.args.seeds[1:]:
            for label, rate in rates.items():
                self.run(objective, label, density, rate, seed)

    def given(self, objective: str) -> None:
        """The runs that were named, on all seeds."""
        for seed in self.args.seeds:
            for label, density, rate in map(given_run, self.args.runs):
                self.run(objective, label, density, rate, seed)


def search_rate(
    badness: Callable[[float], float], label: str, density: float, limit: int, base: float = 3e-5
) -> tuple[float, bool]:
    """The rate with the smallest badness by the rule of this file's head, and whether it is at the edge.

    Args:
        badness: of a rate.
        label, density: of the mask; they say where the search begins.
        limit: rates of the grid to try at most; one between two of them is added.
        base: where the search begins for all weights.
    """
    centre = first_rate(label, density, base)
    start = min(range(len(GRID)), key=lambda index: abs(math.log(GRID[index] / centre)))
    tried = {start: badness(GRID[start])}
    index = start
    while len(tried) < limit and index + 1 < len(GRID) and tried[index] <= min(min(tried.values()) + CLEARLY, LOST):
        index += 1
        tried[index] = badness(GRID[index])
    index = start
    while len(tried) < limit and index > 0 and (index == start or tried[index] <= min(tried.values())):
        index -= 1
        tried[index] = badness(GRID[index])
    best = min(tried, key=lambda index: tried[index])
    rates = {GRID[index]: value for index, value in tried.items()}
    if neighbours := [index for index in (best - 1, best + 1) if index in tried]:
        nearest = min(neighbours, key=lambda index: tried[index])
        halfway = float(f"{math.sqrt(GRID[best] * GRID[nearest]):.2g}")
        rates[halfway] = badness(halfway)
    rate = min(rates, key=lambda rate: rates[rate])
    return rate, rate in (min(rates), max(rates))


def describe(row: dict[str, Any]) -> str:
    """One line on a run."""
    gamma = "" if row["gamma"] is None else f":{row['gamma']}"
    head = f"{row['task']} {row['objective']} {row['score']}{gamma} {row['density']:g} lr {row['learning_rate']:g} seed {row['seed']}"
    if "failed" in row:
        return f"{head}: {row['failed']}"
    numbers = [f"{name} {row[name]:.3f}" for name in ("forget", "retain", "held_out", "relearned") if name in row]
    if "attack_failed" in row:
        numbers.append(f"the attack failed: {row['attack_failed']}")
    return f"{head}: {', '.join(numbers)} ({row['seconds']:.0f} s)"


def parse(given: Sequence[str]) -> tuple[PatchSizeArguments, RecipeArguments]:
    """The study's arguments and the task's.

    Raises:
        ValueError, OSError: one of them, or a file that it names, is wrong.
    """
    task = task_named(given, "people")
    kind = class_of(task)
    parser = TrlParser((PatchSizeArguments, kind.arguments))
    parser.set_defaults(**DEFAULTS.get(kind.name, {}))
    args, data = parser.parse_args_and_config(
        on_bundled_config(given, f"patch_size_{BUNDLED.get(task, task)}", model="--model")
    )
    return args, data


def main() -> None:
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    with refusals():
        args, data = parse(sys.argv[1:])
        study = Study(args, Rows(Path(args.output_dir) / "results.json", ("model", "task", "objective")), data)
        study.check_model()
        if args.count_missing:
            print(study.progress())
            return
        if args.rerun:
            print("\n".join(study.rerun(args.rerun)))
            return
        study.prepare()
    for objective in args.objectives:
        if args.runs:
            study.given(objective)
            continue
        study.block(objective, [NO_MASK], 1.0)
        for density in args.densities:
            study.block(objective, args.scores, density)
    print(write_report(study.rows.content, Path(args.output_dir), args.utility_loss))
    print(f"\n{study.progress()}")


if __name__ == "__main__":
    main()
