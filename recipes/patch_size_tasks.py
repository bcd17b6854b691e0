"""What the study of patch sizes lets a model forget: tokenized forget, retain and unseen sets, by task and seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from small_llama import small_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer.data import QAFormat, fictional_split, load_facts, load_tofu
from wagle_trainer.data.facts import encode_cloze, pad_examples
from wagle_trainer.models.log_probs import token_log_probs

Example = dict[str, list[int]]

# What the facts are of: other countries' capitals are what is retained and unseen, which is the hard case.
RELATIONS = ("capital",)


@dataclass
class Task:
    """A model that knows something, and what it is to forget.

    Attributes:
        model: the reference model, float32.
        tokenizer: its tokenizer.
        sets: name -> examples: "forget", "retain", "unseen" (as well known, in neither set) and "paraphrased" (the forget
            set in other words).
        retrained: a model that never knew the forget set, where there is one.
    """

    model: Any
    tokenizer: Any
    sets: dict[str, list[Example]]
    retrained: Any = None
    details: dict[str, Any] = field(default_factory=dict)


def people(model_path: str | None, seed: int, size: int, cache: Path, data: str | None) -> Task:
    """The bundled people, and a small Llama of each seed that was trained on them."""
    del model_path, data
    folder = small_llama("full", cache, seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    qa = QAFormat.for_tokenizer(tokenizer)
    forget = list(fictional_split("forget10_perturbed"))[:size]
    others = list(fictional_split("retain90"))
    random.Random(seed).shuffle(others)
    sets = {
        "forget": [qa.encode(row["question"], row["answer"]) for row in forget],
        "retain": [qa.encode(row["question"], row["answer"]) for row in others[: 2 * size]],
        "unseen": [qa.encode(row["question"], row["answer"]) for row in others[2 * size : 4 * size]],
        "paraphrased": [qa.encode(row["paraphrased_question"], row["paraphrased_answer"]) for row in forget],
    }
    return Task(load(folder), tokenizer, sets, load(small_llama("retain90", cache, seed)))


def facts(model_path: str | None, seed: int, size: int, cache: Path, data: str | None) -> Task:
    """Public facts that the model knows from pretraining, as cloze texts. The seed splits them."""
    del cache, data
    model, tokenizer = _shared(_given(model_path))
    splits = load_facts(
        model, tokenizer, relations=RELATIONS, forget=size, retain=2 * size, unseen=2 * size, seed=seed
    )
    sets = {
        name: [encode_cloze(tokenizer, row["cloze"], row["cloze_answer"]) for row in rows]
        for name, rows in splits.items()
    }
    sets["paraphrased"] = [
        encode_cloze(tokenizer, row["paraphrased_cloze"], row["cloze_answer"]) for row in splits["forget"]
    ]
    return Task(model, tokenizer, sets, details={"relations": list(RELATIONS)})


def tofu(model_path: str | None, seed: int, size: int, cache: Path, data: str | None) -> Task:
    """TOFU questions, taught to the model first; the seed draws them and splits them.

    The shortest questions and answers are taken, so that the study runs on a CPU.
    """
    if data is None:
        raise ValueError("The task 'tofu' needs TOFU's files: pass --data FOLDER or a hub id.")
    path = _given(model_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    qa = QAFormat.for_tokenizer(tokenizer, "plain")
    rows = [(row["question"], row["answer"]) for row in load_tofu(data, "full")]
    examples = sorted((qa.encode(*row) for row in rows), key=lambda example: len(example["input_ids"]))
    chosen = examples[: 12 * size]
    random.Random(f"tofu {seed}").shuffle(chosen)
    sets = {
        "forget": chosen[:size],
        "retain": chosen[size : 3 * size],
        "unseen": chosen[3 * size : 5 * size],
    }
    taught = [example for examples in sets.values() for example in examples]
    folder = cache / f"{Path(path).name}-tofu-{size}-{seed}"
    if not (folder / "config.json").exists():
        model = load(path)
        teach(model, taught, seed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Task(load(str(folder)), tokenizer, sets)


def teach(model: Any, examples: Sequence[Example], seed: int, rate: float = 1e-4, goal: float = 0.9) -> None:
    """Train all weights until the mean probability of the answers reaches `goal`, or for 30 epochs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    rng = random.Random(seed)
    order = list(range(len(examples)))
    model.train()
    for _ in range(30):
        rng.shuffle(order)
        known = []
        for start in range(0, len(order), 8):
            batch = pad_examples([examples[index] for index in order[start : start + 8]])
            means = token_log_probs(model, batch).mean()
            (-means.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            known += means.detach().exp().tolist()
        if sum(known) / len(known) >= goal:
            break
    model.eval()


TASKS: dict[str, Callable[[str | None, int, int, Path, str | None], Task]] = {
    "people": people,
    "facts": facts,
    "tofu": tofu,
}


@lru_cache(maxsize=1)
def _shared(path: str) -> tuple[Any, Any]:
    """One model for the tasks of all seeds."""
    return load(path), AutoTokenizer.from_pretrained(path)


def load(path: str) -> Any:
    """A model in float32, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()


def _given(model_path: str | None) -> str:
    if model_path is None:
        raise ValueError("This task needs a pretrained model: pass --model PATH_OR_HUB_ID.")
    return model_path
