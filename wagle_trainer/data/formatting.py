"""How a question and an answer become tokens: one place, shared by training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100


@dataclass(frozen=True)
class QAFormat:
    """A question and its answer as a TRL prompt-completion example, and as the tokens that TRL makes of it.

    `example` and `dataset` feed `trl.SFTTrainer`; `encode` gives the same token ids and labels without a trainer, and
    `prompt_ids` what generation starts from, so that a model is measured on exactly the text it was trained on.

    Attributes:
        tokenizer: a `transformers` tokenizer.
        style: "chat" renders messages with the tokenizer's chat template; "plain" writes
            `Question: {question}\\nAnswer: {answer}` and ends with the EOS token.
        system_prompt: text of a system message before the question; chat style only.

    Raises:
        ValueError: unknown style; chat style without a chat template; plain style without an EOS token, or with a
            system prompt.

    Example:
        ```python
        qa = QAFormat.for_tokenizer(tokenizer)
        trainer = SFTTrainer(model, train_dataset=qa.dataset(load_tofu("fictional", "forget10")))
        answer = model.generate(torch.tensor([qa.prompt_ids("Where was Ilmella Voskomir born?")]))
        ```
    """

    tokenizer: PreTrainedTokenizerBase
    style: Literal["chat", "plain"]
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.style not in ("chat", "plain"):
            raise ValueError(f"Unknown style {self.style!r}: use 'auto', 'chat' or 'plain'.")
        if self.style == "chat" and not self.tokenizer.chat_template:
            raise ValueError(
                "style='chat' needs a chat template, and this tokenizer has none: use style='plain', or give it one "
                "(tokenizer.chat_template = ...)."
            )
        if self.style == "plain" and self.tokenizer.eos_token is None:
            raise ValueError(
                "style='plain' ends answers with the EOS token, and this tokenizer has none: set eos_token."
            )
        if self.style == "plain" and self.system_prompt is not None:
            raise ValueError("A system prompt needs style='chat': plain text has no system message.")

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        style: Literal["auto", "chat", "plain"] = "auto",
        system_prompt: str | None = None,
    ) -> QAFormat:
        """The format for `tokenizer`; style "auto" is "chat" where it has a chat template and "plain" elsewhere.

        Raises:
            ValueError: as the class.
        """
        if style == "auto":
            style = "chat" if tokenizer.chat_template else "plain"
        return cls(tokenizer, style, system_prompt)

    def example(self, question: str, answer: str) -> dict[str, Any]:
        """`{"prompt", "completion"}` as TRL takes it: lists of messages (chat) or strings (plain)."""
        return {"prompt": self._prompt(question), "completion": self._completion(answer)}

    def dataset(self, dataset: Dataset, question: str = "question", answer: str = "answer") -> Dataset:
        """`dataset` as prompt-completion examples, in the same order, with no other columns.

        Args:
            dataset: rows with a question and an answer, both strings.
            question: name of the question column.
            answer: name of the answer column.

        Raises:
            ValueError: a column is missing, or does not hold one string per row.
        """
        from datasets import Dataset

        questions, answers = (_strings(dataset, column, (question, answer)) for column in (question, answer))
        examples = [self.example(*row) for row in zip(questions, answers, strict=True)]
        return Dataset.from_dict({key: [example[key] for example in examples] for key in ("prompt", "completion")})

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids that generation starts from: the question, up to where the answer begins."""
        ids = self._tokenize(self._prompt(question), add_generation_prompt=True)
        # Some tokenizers end every text with EOS; an answer generated after that belongs to another text.
        return ids[:-1] if self.style == "plain" and ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def encode(self, question: str, answer: str) -> dict[str, list[int]]:
        """Token ids and labels of one example, those of TRL's `SFTTrainer` before it truncates to `max_length`.

        Source: `SFTTrainer._prepare_dataset` of trl 1.16. As there, the completion starts where the tokens of the
        prompt and those of prompt and completion part, which may be before the end of the prompt.

        Returns:
            `input_ids` and `labels` of the same length; labels are -100 on the prompt.
        """
        prompt, completion = self._prompt(question), self._completion(answer)
        if self.style == "plain" and not completion.endswith(self.tokenizer.eos_token):
            completion += self.tokenizer.eos_token
        ids = self._tokenize(prompt + completion)
        start = _common_prefix_length(self._tokenize(prompt, add_generation_prompt=True), ids)
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * start + ids[start:]}

    def _prompt(self, question: str) -> Any:
        if self.style == "plain":
            return f"Question: {question}\nAnswer:"
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": question}]

    def _completion(self, answer: str) -> Any:
        return f" {answer}" if self.style == "plain" else [{"role": "assistant", "content": answer}]

    def _tokenize(self, text: Any, add_generation_prompt: bool = False) -> list[int]:
        if self.style == "plain":
            return list(self.tokenizer(text=text)["input_ids"])
        rendered = self.tokenizer.apply_chat_template(
            text, tokenize=True, return_dict=True, add_generation_prompt=add_generation_prompt
        )
        return list(rendered["input_ids"])


def _strings(dataset: Dataset, column: str, needed: tuple[str, str]) -> list[str]:
    if column not in dataset.column_names:
        raise ValueError(
            f"The dataset has no column {column!r}. Needed: {', '.join(needed)}. "
            f"Found: {', '.join(dataset.column_names)}."
        )
    values = list(dataset[column])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            found = "nothing" if value is None else f"a value of type {type(value).__name__}"
            hint = (
                "Make one row of each of its entries first."
                if isinstance(value, list)
                else "Mend or take out such rows."
            )
            raise ValueError(f"Column {column!r} must hold one string per row, but row {row} holds {found}. {hint}")
    return values


def _common_prefix_length(ids: Iterable[int], other_ids: Iterable[int]) -> int:
    length = 0
    for token, other_token in zip(ids, other_ids, strict=False):
        if token != other_token:
            break
        length += 1
    return length
