"""A training run with an `EvaluationCallback`, for tests/evaluation/test_evaluation_callback.py:  FOLDER OUTPUT; writes rankR.json."""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.data import QAFormat, load_tofu_evaluation
from wagle_trainer.evaluation import EvaluationCallback, evaluate_tofu


def train(folder: Path, output: Path, batch_size: int) -> dict:
    """Six steps on four pairs each; evaluated every second one."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    sets = load_tofu_evaluation("fictional", "forget10", limit=8)
    qa = QAFormat.for_tokenizer(tokenizer)
    callback = EvaluationCallback(
        evaluate_tofu,
        {name: rows.select(range(3)) for name, rows in sets.items()},
        every_n_steps=2,
        metrics=["forget_Q_A_Prob", "retain_Q_A_Prob", "forget_Q_A_ROUGE", "model_utility"],
        forget_metric="forget_Q_A_Prob",
        utility_metric="retain_Q_A_Prob",
        forget_goal=0.0,
        keep_best=True,
        batch_size=2,
        max_new_tokens=4,
    )
    trainer = WagleTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        WagleConfig(
            str(output),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=batch_size,
            max_steps=6,
            optim="sgd",
            learning_rate=0.05,
            density=0.3,
            logging_steps=1,
            save_strategy="no",
            save_only_model=True,
        ),
        forget_dataset=qa.dataset(sets["forget"]),
        retain_dataset=qa.dataset(sets["retain"]),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    return {
        "history": callback.history,
        "best": trainer.state.best_global_step,
        "world": trainer.args.world_size,
        "logged": [entry for entry in trainer.state.log_history if "eval_forget_Q_A_Prob" in entry],
    }


if __name__ == "__main__":
    output = Path(sys.argv[2])
    result = train(Path(sys.argv[1]), output, 2)
    (output / f"rank{os.environ['RANK']}.json").write_text(json.dumps(result))
    # Not through the interpreter's end: with a process group it now and then ends in "terminate called without an
    # active exception". All processes have written what they found by then.
    torch.distributed.barrier()
    os._exit(0)
