"""Public facts that a pretrained model knows."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.subject import Example, load_shared
from tasks.task import RecipeArguments, Task, register_task
from wagle_trainer.data import QAFormat, load_facts
from wagle_trainer.data.facts import encode_cloze
from wagle_trainer.data.facts_tables import RELATIONS
from wagle_trainer.data.sources import first_rows
from wagle_trainer.evaluation import get_suite, list_attacks

_CHOICES = 4


@dataclass
class FactsArguments(RecipeArguments):
    """Which of the facts that the model knows are forgotten."""

    relations: list[str] = field(
        default_factory=lambda: ["capital", "element_symbol", "element_number", "currency", "discovery"],
        metadata={"help": "Relations, of `fact_relations()`."},
    )
    known: float = field(default=0.25, metadata={"help": "Probability of its answer from which a model knows a fact."})
    forget_facts: int = field(default=16, metadata={"help": "Facts to forget; twice as many are kept."})
    facts_seed: int = field(default=0, metadata={"help": "Of the split."})


@register_task
class Facts(Task):
    """Forget some public facts, keep others; measured on facts that are in neither set, too."""

    name = "facts"
    suite = "multiple_choice"
    arguments = FactsArguments
    refused_attacks = dict.fromkeys(
        list_attacks(), "facts are cloze texts, which recipes/patch_size.py --task facts attacks"
    )
    data: FactsArguments

    def small_model(self, cache: Path, seed: int = 0, retrained: bool = False) -> str:
        raise SystemExit(
            "The task 'facts' needs a pretrained model: pass --model_name_or_path (recipes/patch_size.py: --model)."
        )

    def training_sets(self, qa: QAFormat) -> tuple[Any, Any]:
        splits = self._splits(qa)
        forget, retain = (Dataset.from_list(_tokenized(qa.tokenizer, splits[name])) for name in ("forget", "retain"))
        return forget, retain

    def evaluation_sets(self, qa: QAFormat, limit: int | None) -> Any:
        splits = self._splits(qa)
        return {
            name: first_rows(Dataset.from_list(_questions(splits[split], self.data.facts_seed)), limit)
            for name, split in (("forget", "forget"), ("retain", "unseen"))
        }

    def evaluate(self, model: Any, qa: QAFormat, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        return get_suite(self.suite).evaluate(model, qa.tokenizer, sets, ask_for="continuation", **passes)

    def examples(self, qa: QAFormat, seed: int, size: int) -> dict[str, list[Example]]:
        """See `Task`. The seed splits the facts that the model knows."""
        data, tokenizer = self.data, qa.tokenizer
        splits = _facts_of(load_shared, tokenizer.name_or_path, tuple(data.relations), data.known, size, seed)
        sets = {name: _tokenized(tokenizer, rows) for name, rows in splits.items()}
        paraphrased = _tokenized(tokenizer, splits["forget"], "paraphrased_cloze")
        return sets | {"paraphrased": paraphrased, "repeated": _repeated(tokenizer, splits["forget"])}

    @property
    def details(self) -> dict[str, Any]:
        """The relations that the facts are of."""
        return {"relations": list(self.data.relations)}

    def _splits(self, qa: QAFormat) -> Any:
        data = self.data
        path, relations = qa.tokenizer.name_or_path, tuple(data.relations)
        return _facts_of(
            AutoModelForCausalLM.from_pretrained, path, relations, data.known, data.forget_facts, data.facts_seed
        )


@lru_cache(maxsize=1)
def _facts_of(
    load: Callable[[str], Any], path: str, relations: tuple[str, ...], known: float, forget: int, seed: int
) -> Any:
    """The splits of what the model that `load` reads from `path` knows."""
    sizes = {"forget": forget, "retain": 2 * forget, "unseen": 2 * forget}
    model, tokenizer = load(path), AutoTokenizer.from_pretrained(path)
    return load_facts(model, tokenizer, known, relations=relations, seed=seed, **sizes)


def _tokenized(tokenizer: Any, rows: Any, cloze: str = "cloze") -> list[Example]:
    """Cloze texts with their answers. Neither recipe trains an end: a text goes on after a fact, and nothing measures it."""
    return [encode_cloze(tokenizer, row[cloze], row["cloze_answer"]) for row in rows]


def _repeated(tokenizer: Any, rows: Any) -> list[Example]:
    """Texts that repeat an answer, which goes on with it: whether a model that forgot a fact still has its words."""
    answers = [row["cloze_answer"] for row in rows]
    return [encode_cloze(tokenizer, ", ".join([answer] * 4) + ",", answer) for answer in answers]


def _questions(rows: Any, seed: int) -> list[dict[str, Any]]:
    """Facts with wrong choices: answers to other facts of the same relation that are wrong for this one."""
    found = []
    for row in rows:
        rng = random.Random(f"{row['cloze']} {seed}")
        others = sorted(RELATIONS[row["relation"]].wrong_answers(row["subject"]))
        choices = [row["cloze_answer"], *rng.sample(others, min(_CHOICES - 1, len(others)))]
        rng.shuffle(choices)
        found.append({"question": row["cloze"], "choices": choices, "answer": choices.index(row["cloze_answer"])})
    return found
