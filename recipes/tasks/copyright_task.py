"""Copyrighted text: a book, or MUSE's books and news."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from tasks.task import RecipeArguments, Task, register_task
from tasks.texts_as_questions import as_questions, text_format
from wagle_trainer.data import QAFormat, load_muse, load_wmdp
from wagle_trainer.data.books import continuations, passages, read_text
from wagle_trainer.data.fictional import fictional_almanac, fictional_novel
from wagle_trainer.data.forget_and_retain import read_rows
from wagle_trainer.data.sources import first_rows
from wagle_trainer.evaluation import get_suite
from wagle_trainer.models.small_llama import ALMANAC, NOVEL, small_llama

_HELD_OUT = 10  # every tenth general text is kept for the evaluation


@dataclass
class CopyrightArguments(RecipeArguments):
    """A book in a text file (`forget_file`), MUSE's folder or hub id (`dataset_name`), or `fictional`."""

    unseen_file: str | None = field(
        default=None,
        metadata={"help": "A book that the model never saw, as a control; by default passages of the general text."},
    )
    passage_tokens: int = field(default=512, metadata={"help": "Tokens of a passage."})
    passages: int | None = field(default=200, metadata={"help": "Passages of the book that are forgotten; none: all."})
    prompt_tokens: int = field(default=100, metadata={"help": "Tokens of a passage that the model is given."})
    continuation_tokens: int = field(default=300, metadata={"help": "Tokens that follow, in the evaluation."})


@register_task
class Copyright(Task):
    """Forget a book that the model knows by heart, keep other text."""

    name = "copyright"
    suite = "copyright"
    arguments = CopyrightArguments
    utility_metric: str | None = "general_perplexity"
    refused_attacks: ClassVar = {
        "jailbreak": "a passage is continued, and no question is asked that a request could stand before",
        "paraphrase": "a passage in other words is another passage",
    }
    data: CopyrightArguments

    def __init__(self, data: CopyrightArguments):
        self.muse = data.dataset_name not in (None, "fictional")
        if self.muse:
            self.suite, self.utility_metric = "muse", None
        super().__init__(data)
        if data.dataset_name is None and data.forget_file is None:
            raise ValueError("Say which book is to be forgotten: --forget_file book.txt, or --dataset_name (MUSE's).")

    def small_model(self, cache: Path, seed: int = 0, retrained: bool = False) -> str:
        return small_llama("retain" if retrained else "full", cache, seed, self.name)

    def training_sets(self, qa: QAFormat) -> tuple[Any, Any]:
        book, general = self._book(qa.tokenizer), self._general(qa.tokenizer)
        return continuations(book, qa.tokenizer, self.data.prompt_tokens), general["train"]

    def evaluation_sets(self, qa: QAFormat, limit: int | None) -> Any:
        if self.muse:
            return get_suite("muse").load(self.data.dataset_name, limit=limit)
        general = first_rows(self._general(qa.tokenizer)["test"], limit)
        text = self._unseen()
        unseen = general if text is None else self._passages(text, qa.tokenizer, "unseen book")
        return {
            "seen": first_rows(self._book(qa.tokenizer), limit),
            "unseen": first_rows(unseen, limit),
            "general": general,
        }

    def evaluate(self, model: Any, qa: QAFormat, sets: Any, reference: Any = None, **passes: Any) -> dict[str, Any]:
        if self.muse:
            return get_suite("muse").evaluate(model, qa.tokenizer, sets, reference=reference, **passes)
        return get_suite(self.suite).evaluate(
            model,
            qa.tokenizer,
            sets,
            prompt_tokens=self.data.prompt_tokens,
            continuation_tokens=self.data.continuation_tokens,
            **passes,
        )

    def attack_sets(self, qa: QAFormat) -> Any:
        """See `Task`: beginnings of passages, and how they go on."""
        general = self._general(qa.tokenizer)["train"]
        book = continuations(self._book(qa.tokenizer), qa.tokenizer, self.data.prompt_tokens)
        return {"forget": as_questions(book), "retain": as_questions(general)}

    def attack_format(self, qa: QAFormat) -> QAFormat:
        """See `Task`."""
        return text_format(qa)

    def _book(self, tokenizer: Any) -> Dataset:
        if self.muse:
            assert self.data.dataset_name is not None
            return self._passages(load_muse(self.data.dataset_name, "raw", "forget")["text"], tokenizer, "forget set")
        text = fictional_novel(NOVEL) if self.data.forget_file is None else read_text(self.data.forget_file)
        return self._passages(text, tokenizer, "book")

    def _unseen(self) -> str | None:
        if self.data.unseen_file is not None:
            return read_text(self.data.unseen_file)
        return fictional_novel(NOVEL + 2) if self.data.dataset_name == "fictional" else None

    def _general(self, tokenizer: Any) -> dict[str, Dataset]:
        """Other text: to be kept ("train"), and to measure on ("test")."""
        if self.data.dataset_name == "fictional":
            return {part: Dataset.from_dict({"text": fictional_almanac(part)}) for part in ALMANAC}
        if self.muse:
            rows = self._passages(
                load_muse(str(self.data.dataset_name), "raw", "retain1")["text"], tokenizer, "retain set"
            )
        elif self.data.retain_file is None:
            rows = load_wmdp("wikitext")
        elif self.data.retain_file.endswith(".txt"):
            rows = self._passages(read_text(self.data.retain_file), tokenizer, "retain text")
        else:
            rows = read_rows(self.data.retain_file)
        if len(rows) < 2:
            raise ValueError("The retain text has one passage: at least two are needed, one of them to measure on.")
        test = list(range(0, len(rows), _HELD_OUT))
        return {"train": rows.select(sorted(set(range(len(rows))) - set(test))), "test": rows.select(test)}

    def _passages(self, text: Any, tokenizer: Any, source: str) -> Dataset:
        return passages(text, tokenizer, self.data.passage_tokens, self.data.passages, source)
