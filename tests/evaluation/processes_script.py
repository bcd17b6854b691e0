"""Evaluations dealt out over processes, for tests/evaluation/test_processes.py:  FOLDER, which has `model`; writes rankR.json."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer.data import QAFormat, load_tofu_evaluation
from wagle_trainer.evaluation import (
    HarnessTasks,
    evaluate_copyright,
    evaluate_detoxification,
    evaluate_muse,
    evaluate_tofu,
    evaluate_wmdp,
    generate_greedy,
    score_answers,
)

torch.set_num_threads(1)
folder = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder / "model")
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
qa = QAFormat.for_tokenizer(tokenizer)
sets = load_tofu_evaluation("fictional", "forget10", limit=3)


def everything(across_processes: bool, rows: int) -> dict:
    """Scores and answers of so many questions, in batches of two."""
    questions = list(sets["forget"])[:rows]
    options = {"batch_size": 2, "progress": False, "across_processes": across_processes}
    scores = score_answers(
        model,
        [qa.encode(row["question"], row["answer"]) for row in questions],
        [f"row {row}" for row in range(rows)],
        eos_token_id=tokenizer.eos_token_id,
        tokens=True,
        vocabulary=True,
        **options,
    )
    prompts = [qa.prompt_ids(row["question"]) for row in questions]
    return {
        "scores": [dataclasses.asdict(score) for score in scores],
        "texts": generate_greedy(model, tokenizer, prompts, max_new_tokens=5, **options),
    }


def suites(across_processes: bool) -> dict:
    """The other suites, on the same questions; WMDP's only where the harness is installed and so there are tasks."""
    options = {"batch_size": 2, "progress": False, "across_processes": across_processes}
    rows = list(sets["forget"])
    texts = [{"text": f"{row['question']} {row['answer']}"} for row in rows]
    muse = {
        "verbmem_forget": [{"prompt": row["question"], "gt": row["answer"]} for row in rows],
        "knowmem_forget": rows,
        "knowmem_retain": list(sets["retain"]),
        "privleak_forget": texts,
        "privleak_holdout": [{"text": row["answer"]} for row in sets["retain"]],
    }
    found = {
        "muse": evaluate_muse(model, tokenizer, muse, verbmem_tokens=5, knowmem_tokens=5, **options),
        "copyright": evaluate_copyright(
            model, tokenizer, {"seen": texts, "unseen": texts[1:]}, prompt_tokens=4, continuation_tokens=5, **options
        ),
        "detoxification": evaluate_detoxification(
            model,
            tokenizer,
            {"prompts": [{"prompt": row["question"]} for row in rows]},
            toxicity=lambda said: [1 / (1 + len(text)) for text in said],
            max_new_tokens=5,
            **options,
        ),
    }
    if (folder / "tasks").is_dir():
        tasks = HarnessTasks(["forget_bio", "forget_cyber"], ["retain_all"], str(folder / "tasks"))
        found["wmdp"] = evaluate_wmdp(model, tokenizer, tasks, **options)
    return found


def broken() -> str:
    """What an answer that one process alone comes across, and that is impossible, raises."""
    word = sets["forget"][2]["answer"].split()[0]
    with torch.no_grad():
        model.lm_head.weight[tokenizer(word)["input_ids"]] = float("nan")
    try:
        everything(True, 3)
    except FloatingPointError as error:
        return str(error)
    return "nothing"


options = {"batch_size": 4, "progress": False}
result = {
    # 3 questions make 2 batches, 1 makes 1 batch, which does not go round; 0 make none.
    "alone": [everything(False, rows) for rows in (3, 1, 0)],
    "shared": [everything(True, rows) for rows in (3, 1, 0)],
    "tofu_alone": evaluate_tofu(model, tokenizer, sets, gradient_norm=True, **options),
    "tofu_shared": evaluate_tofu(model, tokenizer, sets, gradient_norm=True, across_processes=True, **options),
    "suites_alone": suites(False),
    "suites_shared": suites(True),
    "broken": broken(),
    "processes": PartialState().num_processes,
}
(folder / f"rank{PartialState().process_index}.json").write_text(json.dumps(result))
# Not through the interpreter's end: with a process group it now and then ends in "terminate called without an
# active exception". All processes have written what they found by then.
PartialState().wait_for_everyone()
os._exit(0)
