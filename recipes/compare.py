"""Does the mask matter? WAGLE, random, magnitude, gradient, SNIP and no mask, at equal densities, over seeds, tested.

python recipes/compare.py                                   # the bundled people, 3 seeds
python recipes/compare.py --config recipes/configs/llama_3.2_1b.yaml --learning_rates 5e-6 1e-5 2e-5 --seeds 0 1 2

Started with `python`: whole models run side by side, `--processes` of them. Every run is a file of its own, and what is
there is not run again: a stopped comparison goes on where it stopped, and seeds, densities, scores and learning rates
can be added later.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import yaml
from compare_report import forget_goal, picks, read_references, report
from compare_runs import CompareArguments, Runs
from recipe import CONFIGS
from tasks import task_class
from tqdm.auto import tqdm
from trl import ModelConfig, TrlParser

from wagle_trainer import WagleConfig


def _task_of(arguments: Sequence[str]) -> str:
    """The task, which decides on the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    parser.add_argument("--config")
    found, _ = parser.parse_known_args(arguments)
    in_file = yaml.safe_load(Path(found.config).read_text(encoding="utf-8")) if found.config else {}
    return found.task or in_file.get("task", "tofu")


def _default_config(task: str) -> Path:
    bundled = {"tofu": "compare_fictional", "facts": "compare_facts"}
    return CONFIGS / f"{bundled.get(task, f'compare_{task}_fictional')}.yaml"


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

    def map(self, function: Callable[..., None], items: Sequence[tuple[Any, ...]], title: str) -> None:
        """Call the function with the arguments of every item."""
        with tqdm(total=len(items), desc=title, unit="run") as bar:
            if self.pool is None:
                for item in items:
                    function(*item)
                    bar.update()
                return
            try:
                for done in as_completed([self.pool.submit(function, *item) for item in items]):
                    done.result()
                    bar.update()
            except BaseException:
                self.pool.shutdown(cancel_futures=True)
                raise


def main() -> None:
    arguments = sys.argv[1:]
    if "--config" not in arguments and "--model_name_or_path" not in arguments:
        arguments = ["--config", str(_default_config(_task_of(arguments))), *arguments]
    task = _task_of(arguments)
    parser = TrlParser((CompareArguments, task_class(task).arguments, WagleConfig, ModelConfig))
    compare, data, args, model_args = parser.parse_args_and_config(arguments)
    if args.world_size > 1:
        raise SystemExit("recipes/compare.py runs whole models side by side: start it with python and --processes.")
    if model_args.use_peft:
        raise SystemExit("recipes/compare.py compares masks on the model's own weights: leave out --use_peft.")
    runs = Runs(compare, data, args, model_args)
    runs.check_settings()
    processes = compare.processes or (2 if args.device.type == "cpu" else 1)
    prepare_process(1 if runs.small else None)  # so small a model gains nothing from more threads

    workers = Workers(processes)
    if runs.small:
        workers.map(
            runs.train_model, [(seed, retrained) for seed in compare.seeds for retrained in (False, True)], "Models"
        )
    workers.map(runs.measure_references, [(seed,) for seed in runs.reference_seeds], "References")
    goal = forget_goal(read_references(runs), compare)  # before the long part, in case there is none
    workers.map(runs.run, [(variant,) for variant in runs.variants if runs.missing(variant)], "Variants")
    picked = picks(runs, goal)
    if compare.attacks:
        if runs.retrained(compare.seeds[0]) is not None:
            workers.map(runs.attack_retrained, [(seed,) for seed in runs.reference_seeds], "Attacks on the retrained")
        reached = [(v, p.learning_rate) for v in runs.variants if (p := picked.get(v.label)) and p.reached]
        workers.map(runs.attack_variant, reached, "Attacks")
    report(runs, picked, goal)


if __name__ == "__main__":
    main()
