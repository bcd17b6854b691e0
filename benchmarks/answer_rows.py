"""The control of the patch study: random weights in the embedding rows of the answers to forget, which no score chooses.

python benchmarks/answer_rows.py --model SMOLLM2_FOLDER --output benchmarks/results/patch_size_deep/answer_rows.json

Capitals, sets, objective and attack are those of `recipes/configs/patch_size_facts_deep.yaml`. The first seed tries five
learning rates; all seeds run with one of them, and are attacked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

RECIPES = Path(__file__).parents[1] / "recipes"
sys.path.insert(0, str(RECIPES))
from patch_size import PatchSizeArguments, Study  # noqa: E402
from patch_size_runs import Rows  # noqa: E402

from wagle_trainer import WeightMask  # noqa: E402
from wagle_trainer.evaluation import save_results  # noqa: E402

DENSITY, RATES, CHOSEN = 1e-5, (0.03, 0.055, 0.1, 0.3, 1.0), 0.055


def answer_rows_mask(bench: Any, density: float, seed: int) -> WeightMask:
    """Random weights of the rows of the input embeddings that belong to tokens of the forget answers."""
    parameters = dict(bench.model.named_parameters())
    embedding = bench.model.get_input_embeddings().weight
    [name] = [key for key, parameter in parameters.items() if parameter is embedding]
    labels = {label for example in bench.task.sets["forget"] for label in example["labels"]}
    tokens = torch.tensor(sorted(labels - {-100, *bench.task.tokenizer.all_special_ids}))
    number = int(density * sum(parameter.numel() for parameter in parameters.values()))
    width = embedding.shape[1]
    places = torch.randperm(len(tokens) * width, generator=torch.Generator().manual_seed(seed))[:number]
    selected = {key: torch.zeros(parameter.shape, dtype=torch.bool) for key, parameter in parameters.items()}
    selected[name][tokens[places // width], places % width] = True
    return WeightMask.from_dict(selected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = yaml.safe_load((RECIPES / "configs" / "patch_size_facts_deep.yaml").read_text(encoding="utf-8"))
    config |= {"model": options.model, "output_dir": str(options.output.parent / "answer_rows")}
    args = PatchSizeArguments(**config)
    study = Study(args, Rows(options.output.parent / "answer_rows" / "results.json"))
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        bench = study.bench(seed)
        bench.given["answer rows"] = answer_rows_mask(bench, DENSITY, seed)
        for rate in RATES if seed == args.seeds[0] else (CHOSEN,):
            row = bench.run("npo", "answer rows", None, DENSITY, rate, attack=rate == CHOSEN)
            bench.forget_runs()
            rows.append({"seed": seed, "density": DENSITY, "learning_rate": rate} | row)
            print(rows[-1], flush=True)
            save_results({"environment": study.environment, "rows": rows}, options.output)


if __name__ == "__main__":
    main()
