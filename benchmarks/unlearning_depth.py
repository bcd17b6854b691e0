"""How deep different objectives erase: the suite `unlearning_depth` on the bundled people, which `docs/reference/objectives.md` shows.

python benchmarks/unlearning_depth.py

Each run is one of `recipes/configs/objectives_fictional.yaml`, at the learning rate that its comparison chose.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from objectives import probability
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer.data import QAFormat, fictional_split
from wagle_trainer.evaluation import evaluate_unlearning_depth, save_results
from wagle_trainer.models.small_llama import small_llama

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "objectives_fictional.yaml"
# Objective, score of the mask, learning rate.
RUNS: tuple[tuple[str, str | None, float], ...] = (
    ("npo", None, 1e-3),
    ("npo", "wagle", 3e-3),
    ("rmu", None, 3e-3),
    ("grad_diff", None, 1e-3),
    ("po", None, 3e-3),
    ("random_label", None, 1e-3),
    ("tnpo", None, 3e-3),
    ("undial", None, 3e-3),
    ("simnpo", None, 3e-3),
    ("rmu", "wagle", 3e-3),
)
SPLITS = {"reference_model": "full", "retrained_model": "retain90"}
_OF_THE_COMPARISON = {
    *("model_name_or_path", "retrained_model", "output_dir", "evaluation_samples", "evaluation_batch_size"),
    *("save_generations", "objectives", "objective_settings", "scores", "densities", "seeds", "learning_rates"),
}


def unlearn(reference: str, objective: str, score: str | None, rate: float, folder: Path) -> None:
    """Run `wagle unlearn`, which saves the model in a folder."""
    comparison = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    run = {name: value for name, value in comparison.items() if name not in _OF_THE_COMPARISON}
    run |= comparison["objective_settings"].get(objective, {})
    run |= {"model_name_or_path": reference, "output_dir": str(folder), "loss_type": objective, "learning_rate": rate}
    run |= {"attribution": score or "none", "density": comparison["densities"][0], "seed": comparison["seeds"][0]}
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(run), encoding="utf-8")
    command = [sys.executable, "-m", "wagle_trainer.cli", "unlearn", "--config", str(config)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("outputs/models"), help="where the small Llamas are kept")
    parser.add_argument("--output", default="benchmarks/results/objectives_compared/unlearning_depth.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    folders = {name: small_llama(split, options.models) for name, split in SPLITS.items()}
    tokenizer = AutoTokenizer.from_pretrained(folders["reference_model"])
    others = {name: AutoModelForCausalLM.from_pretrained(folder).eval() for name, folder in folders.items()}
    forget, qa = list(fictional_split("forget10")), QAFormat.for_tokenizer(tokenizer)

    def depth(folder: str) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        found = evaluate_unlearning_depth(model, tokenizer, forget, **others, progress=False)
        return {
            "unlearning_depth": found["unlearning_depth"],
            "forget_probability": probability(model, qa, "forget10"),
            "rows": len(found["per_example"]["forget"]["row"]),
        }

    rows = {
        "reference model": depth(folders["reference_model"]),
        "retrained without the forget set": depth(folders["retrained_model"]),
    }
    with TemporaryDirectory() as work:
        for index, (objective, score, rate) in enumerate(RUNS):
            folder = Path(work, str(index))
            unlearn(folders["reference_model"], objective, score, rate, folder)
            name = f"{objective}, {'no mask' if score is None else f'{score} 0.05'}"
            rows[name] = {"learning_rate": rate} | depth(str(folder))
            print(name, rows[name], flush=True)
    description = {"model": "small Llama, seed 0", "set": f"bundled people, forget10, {len(forget)} rows"}
    save_results({**description, "rows": rows}, options.output)


if __name__ == "__main__":
    main()
