"""Does the mask matter? WAGLE, random, magnitude, gradient, SNIP and no mask, at equal densities, over seeds, tested.

python recipes/compare.py                                   # the bundled people, 3 seeds
python recipes/compare.py --config recipes/configs/llama_3.2_1b.yaml --learning_rates 5e-6 1e-5 2e-5 --seeds 0 1 2

Started with `python`: whole models run side by side, `--processes` of them. Every run is a file of its own, and what is
there is not run again: a stopped comparison goes on where it stopped, and seeds, densities, scores and learning rates
can be added later. `wagle compare` does the same for a model and data of your own.
"""

import sys

from compare_runs import CompareArguments, Runs
from recipe import on_bundled_config, task_named
from tasks import task_class
from trl import ModelConfig, TrlParser

from wagle_trainer import WagleConfig
from wagle_trainer.comparison.run_comparison import check_can_compare, run_comparison


def _bundled_config(task: str) -> str:
    bundled = {"tofu": "compare_fictional", "facts": "compare_facts"}
    return bundled.get(task, f"compare_{task}_fictional")


def main() -> None:
    arguments = on_bundled_config(sys.argv[1:], _bundled_config(task_named(sys.argv[1:])))
    task = task_named(arguments)
    parser = TrlParser((CompareArguments, task_class(task).arguments, WagleConfig, ModelConfig))
    compare, data, args, model_args = parser.parse_args_and_config(arguments)
    check_can_compare(args, model_args)
    runs = Runs(compare, data, args, model_args)
    models = [(seed, retrained) for seed in compare.seeds for retrained in (False, True)] if runs.small else []
    print(run_comparison(runs, first=(runs.train_model, models, "Models"), threads=1 if runs.small else None))


if __name__ == "__main__":
    main()
