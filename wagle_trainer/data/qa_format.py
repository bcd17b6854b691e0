"""How a question and an answer become tokens: one place, shared by training and evaluation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.hub import find_file

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
FILE_NAME = "qa_format.json"
OPEN_UNLEARNING = "open-unlearning"
DATE = "10 Apr 2025"  # the date that OpenUnlearning's models were trained with
_DEFAULT_TAGS = {"question_prefix": "Question: ", "question_suffix": "\nAnswer:", "answer_prefix": " "}
_SAVED = ("style", "system_prompt", "chat_template_kwargs", *_DEFAULT_TAGS, "compatibility")


def _logger() -> Any:
    """Transformers' logger, for which this module alone does not import Transformers."""
    from transformers.utils import logging

    return logging.get_logger(__name__)


def pinned_variables(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Variables of the chat template that would change from day to day, with a value that does not."""
    template = str(tokenizer.chat_template or "")
    if "date_string" in template:
        return {"date_string": DATE}
    if "strftime_now" in template:
        _logger().warning_once(
            "The chat template prints today's date and takes no other: tokens and numbers will differ from day to day. Write a "
            "date into tokenizer.chat_template in place of strftime_now(...)."
        )
    return {}


@dataclass(frozen=True)
class QAFormat:
    """A question and its answer as a TRL prompt-completion example, and as the tokens that TRL makes of it.

    `example` and `dataset` feed `trl.SFTTrainer`; `encode` gives the same token ids and labels without a trainer, and
    `prompt_ids` what generation starts from, so that a model is measured on exactly the text it was trained on. Saved
    beside a model (`qa_format.json`), it is read again by whatever measures or attacks that model.

    Attributes:
        tokenizer: a `transformers` tokenizer.
        style: "chat" renders messages with the tokenizer's chat template; "plain" writes
            `Question: {question}\\nAnswer: {answer}`, or other tags, and ends with the EOS token.
        system_prompt: text of a system message before the question; chat style only.
        chat_template_kwargs: variables of the chat template, such as `enable_thinking`. Where the template prints a date,
            `date_string` is 10 Apr 2025 unless it is given, so that a run is the same on every day.
        question_prefix, question_suffix, answer_prefix: what stands before the question, between question and answer, and
            at the start of the answer; plain style only. TOFU's Llama-2 models have `"[INST] "`, `" [/INST]"` and `""`.
        compatibility: "open-unlearning" gives the tokens and labels of OpenUnlearning's code: an EOS token after every
            answer, also where the template ends with one and a newline, and labels from the number of the prompt's tokens
            on, where the prompt includes `answer_prefix`.

    Raises:
        ValueError: unknown style or compatibility; chat style without a chat template; plain style without an EOS token,
            or with a system prompt or template variables; chat style with tags.

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
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    question_prefix: str = "Question: "
    question_suffix: str = "\nAnswer:"
    answer_prefix: str = " "
    compatibility: str | None = None

    def __post_init__(self) -> None:
        if self.style not in ("chat", "plain"):
            raise ValueError(f"Unknown style {self.style!r}: use 'auto', 'chat' or 'plain'.")
        if self.compatibility not in (None, OPEN_UNLEARNING):
            raise ValueError(f"Unknown compatibility {self.compatibility!r}: use {OPEN_UNLEARNING!r} or None.")
        if self.style == "chat" and not self.tokenizer.chat_template:
            raise ValueError(
                "style='chat' needs a chat template, and this tokenizer has none: use style='plain', or give it one "
                "(tokenizer.chat_template = ...)."
            )
        if self.style == "chat" and self._tags() != _DEFAULT_TAGS:
            raise ValueError(
                "question_prefix, question_suffix and answer_prefix need style='plain': a chat template has its own tags."
            )
        if self.style == "plain" and self.tokenizer.eos_token is None:
            raise ValueError(
                "style='plain' ends answers with the EOS token, and this tokenizer has none: set eos_token."
            )
        if self.style == "plain" and self.system_prompt is not None:
            raise ValueError("A system prompt needs style='chat': plain text has no system message.")
        if self.style == "plain" and self.chat_template_kwargs:
            raise ValueError("Variables of the chat template need style='chat'.")
        if self.style == "chat":
            pinned = pinned_variables(self.tokenizer) | dict(self.chat_template_kwargs)
            object.__setattr__(self, "chat_template_kwargs", pinned)

    def _tags(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in _DEFAULT_TAGS}

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        style: Literal["auto", "chat", "plain"] = "auto",
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        thinking: bool | None = None,
        question_prefix: str | None = None,
        question_suffix: str | None = None,
        answer_prefix: str | None = None,
        compatibility: str | None = None,
    ) -> QAFormat:
        """The format for `tokenizer`; style "auto" is "chat" where it has a chat template and no tags are given.

        Args:
            tokenizer: see the class.
            style: see the class.
            system_prompt: see the class.
            chat_template_kwargs: see the class.
            thinking: the template's `enable_thinking`, for models that think before they answer; None: as it is.
            question_prefix, question_suffix, answer_prefix: see the class; None for the default.
            compatibility: see the class.

        Raises:
            ValueError: as the class.
        """
        given = {
            "question_prefix": question_prefix,
            "question_suffix": question_suffix,
            "answer_prefix": answer_prefix,
        }
        tags = {name: tag for name, tag in given.items() if tag is not None}
        if style == "auto":
            style = "chat" if tokenizer.chat_template and not tags else "plain"
        variables = dict(chat_template_kwargs or {})
        if thinking is not None:
            variables["enable_thinking"] = thinking
        return cls(tokenizer, style, system_prompt, variables, compatibility=compatibility, **tags)

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], tokenizer: PreTrainedTokenizerBase) -> QAFormat:
        """The format saved in a folder or a repository on the Hub.

        Args:
            path: folder or Hub id.
            tokenizer: the model's.

        Raises:
            FileNotFoundError: none is saved there.
            ValueError: the file is broken, or does not suit the tokenizer.
        """
        file = find_file(path, FILE_NAME, None, "format of questions and answers")
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            known = {name: saved[name] for name in _SAVED}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is not what QAFormat.save_pretrained writes ({error}).") from error
        return cls(tokenizer, **known)

    @classmethod
    def for_model(
        cls, path: str | PathLike[str] | None, tokenizer: PreTrainedTokenizerBase, style: Any = "auto", **options: Any
    ) -> QAFormat:
        """The format that was saved with a model, or that of its tokenizer; what is given counts more.

        Args:
            path: the model's folder or id on the Hub; None has no saved format.
            tokenizer: its tokenizer.
            style: as for `for_tokenizer`.
            **options: as for `for_tokenizer`; None for what is not given.

        Raises:
            ValueError: as the class.
        """
        given = {name: value for name, value in options.items() if value is not None}
        saved = None
        if path is not None:
            # What cannot be reached is told of by what loads the model.
            with contextlib.suppress(FileNotFoundError):
                saved = cls.from_pretrained(path, tokenizer)
        if saved is not None and style == "auto" and not given:
            return saved
        chosen = cls.for_tokenizer(tokenizer, style, **given)
        if saved is not None and saved.describe() != chosen.describe():
            _logger().warning(
                f"The model in {path} was made with another format of questions and answers: {_differences(saved, chosen)}."
            )
        return chosen

    def check_saved(self, folder: str | PathLike[str], what: str) -> None:
        """Warn where a format that was saved in a folder differs from this one.

        Args:
            folder: of a mask or a checkpoint; without a saved format nothing is said.
            what: it is, for the warning.
        """
        if (Path(folder) / FILE_NAME).is_file():
            saved = self.from_pretrained(folder, self.tokenizer)
            if saved.describe() != self.describe():
                _logger().warning(
                    f"{what} in {folder} was made with another format of questions and answers: {_differences(saved, self)}."
                )

    def describe(self) -> dict[str, Any]:
        """What JSON can hold of it: everything but the tokenizer."""
        return {name: getattr(self, name) for name in _SAVED} | {
            "chat_template_kwargs": dict(self.chat_template_kwargs)
        }

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `qa_format.json` into a folder, which is made if need be.

        Args:
            folder: where to write.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.describe(), indent=1, ensure_ascii=False)
        write_atomically(Path(folder) / FILE_NAME, f"{content}\n".encode())

    def example(self, question: str, answer: str) -> dict[str, Any]:
        """`{"prompt", "completion"}` as TRL takes it: lists of messages (chat) or strings (plain).

        With variables of the chat template they are there, too; with `compatibility` also `input_ids` and `labels`, which
        TRL cannot make of the texts.

        Args:
            question: as text.
            answer: as text.
        """
        example = {"prompt": self._prompt(question), "completion": self._completion(answer)}
        if self.chat_template_kwargs:
            example["chat_template_kwargs"] = dict(self.chat_template_kwargs)
        return example | (self.encode(question, answer) if self.compatibility else {})

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
        columns = list(examples[0]) if examples else ["prompt", "completion"]
        return Dataset.from_dict({key: [example[key] for example in examples] for key in columns})

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids that generation starts from: the question, up to where the answer begins.

        Args:
            question: as text.
        """
        ids = self._tokenize(self._prompt_before_generation(question), add_generation_prompt=True)
        # Some tokenizers end every text with EOS; an answer generated after that belongs to another text.
        return ids[:-1] if self.style == "plain" and ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def encode(self, question: str, answer: str) -> dict[str, list[int]]:
        """Token ids and labels of one example, those of TRL's `SFTTrainer` before it truncates to `max_length`.

        Source: `SFTTrainer._prepare_dataset` of trl 1.16. As there, the completion starts where the tokens of the
        prompt and those of prompt and completion part, which may be before the end of the prompt.

        Args:
            question: as text.
            answer: as text.

        Returns:
            `input_ids` and `labels` of the same length; labels are -100 on the prompt.
        """
        prompt, completion = self._prompt(question), self._completion(answer)
        if self.compatibility:
            return self._encode_as_open_unlearning(question, prompt + completion)
        if self.style == "plain" and not completion.endswith(self.tokenizer.eos_token):
            completion += self.tokenizer.eos_token
        ids = self._tokenize(prompt + completion)
        start = common_prefix_length(self._tokenize(prompt, add_generation_prompt=True), ids)
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * start + ids[start:]}

    def _encode_as_open_unlearning(self, question: str, whole: Any) -> dict[str, list[int]]:
        """Source: `preprocess_chat_instance` of OpenUnlearning's src/data/utils.py (2025)."""
        ids = self._tokenize(whole)
        if ids[-1] != self.tokenizer.eos_token_id:
            ids.append(self.tokenizer.eos_token_id)
        start = len(self._tokenize(self._prompt_before_generation(question), add_generation_prompt=True))
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * min(start, len(ids)) + ids[start:]}

    def _prompt_before_generation(self, question: str) -> Any:
        prompt = self._prompt(question)
        return prompt + self.answer_prefix if self.style == "plain" and self.compatibility else prompt

    def _prompt(self, question: str) -> Any:
        if self.style == "plain":
            return f"{self.question_prefix}{question}{self.question_suffix}"
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": question}]

    def _completion(self, answer: str) -> Any:
        return f"{self.answer_prefix}{answer}" if self.style == "plain" else [{"role": "assistant", "content": answer}]

    def _tokenize(self, text: Any, add_generation_prompt: bool = False) -> list[int]:
        if self.style == "plain":
            return list(self.tokenizer(text=text)["input_ids"])
        rendered = self.tokenizer.apply_chat_template(
            text,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=add_generation_prompt,
            **self.chat_template_kwargs,
        )
        return list(rendered["input_ids"])


def _differences(saved: QAFormat, chosen: QAFormat) -> str:
    before, now = saved.describe(), chosen.describe()
    return "; ".join(
        f"{name} was {before[name]!r} and is {now[name]!r}" for name in _SAVED if before[name] != now[name]
    )


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
                else "Fix such rows, or take them out."
            )
            raise ValueError(f"Column {column!r} must hold one string per row, but row {row} holds {found}. {hint}")
    return values


def common_prefix_length(ids: Iterable[int], other_ids: Iterable[int]) -> int:
    """Number of tokens that two texts begin with alike: where TRL lets a completion start."""
    length = 0
    for token, other_token in zip(ids, other_ids, strict=False):
        if token != other_token:
            break
        length += 1
    return length
