"""All objectives on the bundled people, each dense, with the WAGLE mask and with a random one of the same density.

python benchmarks/objectives.py

One setting for all of them, tuned for none, save what `SETTINGS` says: the table shows that each does what it aims at
and how masks change it, not which objective is best.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import report
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.data import QAFormat, fictional_split
from wagle_trainer.evaluation.answer_scores import score_answers
from wagle_trainer.losses import get_loss, list_losses
from wagle_trainer.models.small_llama import small_llama

SETTINGS: dict[str, dict[str, Any]] = {
    # What has no default, or one for models of 7B weights.
    "pdu": {"loss_kwargs": {"retain_eps": 0.05}},
    "rmu": {"loss_kwargs": {"layer": 2}},
    # The weight in the paper's code: with 1, what is known by heart is held and not let go.
    "satimp": {"retain_weight": 0.1},
    # The gradient is next to nothing until the refusal has become a little likely.
    "jensun": {"num_train_epochs": 20, "learning_rate": 1e-3},
}


def sets(qa: QAFormat) -> tuple[Any, Any]:
    """The forget set in preference format, with a wrong answer as the chosen one; the retain set."""
    retain = qa.dataset(fictional_split("retain90"))

    def preference(row: dict[str, Any]) -> dict[str, Any]:
        true, other = (
            qa.example(row["question"], row["answer"]),
            qa.example(row["question"], row["perturbed_answer"][0]),
        )
        return {"prompt": true["prompt"], "chosen": other["completion"], "rejected": true["completion"]}

    forget = fictional_split("forget10_perturbed")
    return forget.map(preference, remove_columns=forget.column_names), retain


def probability(model: Any, qa: QAFormat, split: str) -> float:
    """Mean probability of the true answers, normalised by length."""
    rows = fictional_split(split).select(range(40))
    examples = [qa.encode(row["question"], row["answer"]) for row in rows]
    names = [f"{split}, row {row}" for row in range(len(examples))]
    scores = score_answers(model, examples, names, eos_token_id=qa.tokenizer.eos_token_id, progress=False)
    return float(np.exp([score.mean_log_prob for score in scores]).mean())


def unlearn(folder: str, loss_type: str, attribution: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """One run, as a row of the table."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    qa = QAFormat.for_tokenizer(tokenizer)
    forget, retain = sets(qa)
    settings = {"num_train_epochs": options.epochs, "learning_rate": options.learning_rate} | SETTINGS.get(
        loss_type, {}
    )
    with tempfile.TemporaryDirectory() as output:
        config = WagleConfig(
            output,
            loss_type=loss_type,
            attribution=attribution,
            density=options.density,
            per_device_train_batch_size=8,
            lr_scheduler_type="constant",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            **settings,
        )
        trainer = WagleTrainer(model, config, forget_dataset=forget, retain_dataset=retain, processing_class=tokenizer)
        start = time.perf_counter()
        trainer.train()
    return {
        "objective": loss_type,
        "weights": attribution or "dense",
        "forget probability": probability(trainer.model, qa, "forget10"),
        "retain probability": probability(trainer.model, qa, "retain90"),
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="outputs/models", help="where the small Llama is, or will be")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--density", type=float, default=0.5)
    built_in = [name for name in list_losses() if get_loss(name).__module__.startswith("wagle_trainer.")]
    parser.add_argument("--objectives", nargs="*", default=built_in, help="by default all")
    parser.add_argument("--output", default="benchmarks/results/objectives.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    folder = small_llama("full", Path(options.models))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    qa = QAFormat.for_tokenizer(tokenizer)
    before = {
        f"{kind} probability": probability(model, qa, split)
        for kind, split in (("forget", "forget10"), ("retain", "retain90"))
    }
    rows = [{"objective": "none", "weights": "before", **before, "seconds": 0.0}]
    for name in options.objectives:
        rows += [unlearn(folder, name, attribution, options) for attribution in (None, "wagle", "random")]
    settings = {**vars(options), "of single objectives": SETTINGS}
    report("Objectives on the bundled people", rows, settings, options.output)


if __name__ == "__main__":
    main()
