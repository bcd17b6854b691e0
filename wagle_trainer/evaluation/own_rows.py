"""Rows of one's own as prompts and answers: for the suite `custom`, and as the questions that attacks ask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.reading.conversations import last_answer, said
from wagle_trainer.evaluation.suites.suite_inputs import Row, continuation, text_ids

if TYPE_CHECKING:  # they need a tokenizer's package, and `datasets`
    from datasets import Dataset

    from wagle_trainer.data.qa_format import QAFormat
    from wagle_trainer.data.reading import Examples

KINDS = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))
PROMPT_WORDS, CONTINUATION_WORDS = 50, 100
_NO_TAGS: dict[str, Any] = {"question_prefix": "", "question_suffix": "", "answer_prefix": ""}


@dataclass
class EncodedRow:
    """One row as text and as tokens.

    Attributes:
        question, answer: as text.
        prompt: tokens that generation starts from.
        encoded: tokens and labels of prompt and answer.
    """

    question: str
    answer: str
    prompt: list[int]
    encoded: dict[str, list[int]]


def measured_rows(examples: Examples, name: str, limit: int | None = None) -> Dataset:
    """The rows of a set that was read, as `evaluate_custom` takes them.

    Args:
        examples: from `read_examples`.
        name: of the set: of preferences in the retain set the chosen answers are measured, in others the rejected ones.
        limit: number of rows, drawn evenly over groups; None for all.

    Raises:
        ValueError: the rows are tokens; or `limit` is no whole number, or below 1.
    """
    from wagle_trainer.data.groups import GROUP, with_groups

    rows = examples.rows
    if examples.kind == "tokens":
        raise ValueError(
            f"{examples.source} holds tokens, and their texts cannot be told from them. Measure with a file of the texts: "
            "question and answer, messages, or text."
        )
    if examples.kind == "preferences":
        from wagle_trainer.data.preparation import as_prompt_completion

        groups = rows[GROUP][:] if GROUP in rows.column_names else None
        rows = as_prompt_completion(rows, "chosen" if name == "retain" else "rejected")
        rows = rows if groups is None else rows.add_column(GROUP, groups)
    return with_groups(rows, None, limit)


def as_questions(examples: Examples, name: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a set as `question` and `answer`.

    Of messages, the answer is the last turn of the assistant, and the turns before it are the question. Of a passage, the
    first 50 words, or half of them, are the question, and at most 100 that follow are the answer.

    Args:
        examples, name, limit: as for `measured_rows`.

    Raises:
        ValueError: as `measured_rows`, or a row has no question or no answer; names it.
    """
    found = []
    for index, row in enumerate(measured_rows(examples, name, limit)):
        where = f"Row {index} of the {name} set"
        kind = kind_of_row(row, where)
        if kind == ("text",):
            question, answer = split_passage(row["text"], where)
        elif kind == ("messages",):
            turns, last = last_answer(row["messages"], where)
            question, answer = said(turns), said([last])
        elif kind == ("prompt", "completion") and not isinstance(row["prompt"], str):
            turns = [*row["prompt"], *row["completion"]]
            question, answer = said(turns[:-1]), said(turns[-1:])
        else:
            question, answer = (str(row[column]) for column in kind)
        if not question.strip() or not answer.strip():
            raise ValueError(f"{where} has no question or no answer in text. Take it out.")
        paraphrase = row.get("paraphrased_question")
        found.append(
            {"question": question, "answer": answer, **({"paraphrased_question": paraphrase} if paraphrase else {})}
        )
    return found


def check_questions(rows: Sequence[Row], qa: QAFormat, name: str) -> None:
    """Raise ValueError, which names the row, if a chat template refuses a question or its answer."""
    from wagle_trainer.data.dataset_checks import naming_template

    for index, row in enumerate(rows):
        with naming_template(f"Row {index} of the {name} set"):
            qa.prompt_ids(row["question"])
            qa.encode(row["question"], row["answer"])


def is_plain_text(examples: Examples) -> bool:
    """Whether the rows are text that goes on, without a format of questions and answers around it."""
    if examples.kind in ("completions", "preferences"):
        column = "completion" if examples.kind == "completions" else "rejected"
        return isinstance(examples.rows[0][column], str)
    return examples.kind == "passages"


def format_of(examples: Examples, chosen: QAFormat) -> QAFormat:
    """The format that `as_questions` of these rows is asked in: for plain text, one that adds nothing to it."""
    return untagged(chosen) if is_plain_text(examples) else chosen


def untagged(chosen: QAFormat) -> QAFormat:
    """The format that adds nothing to questions and answers, for the same tokenizer."""
    from wagle_trainer.data.qa_format import QAFormat

    return QAFormat.for_tokenizer(chosen.tokenizer, "plain", **_NO_TAGS)


def kind_of_row(row: Row, where: str) -> tuple[str, ...]:
    """Which of `KINDS` a row is.

    Raises:
        ValueError: none.
    """
    kind = next((kind for kind in KINDS if all(row.get(column) for column in kind)), None)
    if kind is None:
        wanted = "; ".join(" and ".join(kind) for kind in KINDS)
        raise ValueError(f"{where} has none of: {wanted}. It has {', '.join(map(str, row))}; is one of them empty?")
    return kind


def encode_row(
    qa: QAFormat, row: Row, where: str, prompt_tokens: int = 50, continuation_tokens: int = 100
) -> EncodedRow:
    """A row as prompt and answer.

    Args:
        qa: how questions and answers become tokens.
        row: of one of `KINDS`.
        where: its name, for the errors.
        prompt_tokens: of a passage; half of one that is shorter than twice that.
        continuation_tokens: of a passage after them, at most.

    Raises:
        ValueError: the row is of no kind, or the chat template refuses it.
    """
    from wagle_trainer.data.dataset_checks import naming_template
    from wagle_trainer.data.qa_format import common_prefix_length

    kind = kind_of_row(row, where)
    if kind == ("question", "answer"):
        question, answer = str(row["question"]), str(row["answer"])
        with naming_template(where):
            return EncodedRow(question, answer, qa.prompt_ids(question), qa.encode(question, answer))
    if kind == ("text",):
        return _passage(qa.tokenizer, str(row["text"]), where, prompt_tokens, continuation_tokens)
    if kind == ("messages",):
        return _conversation(qa, *last_answer(row["messages"], where), row, where)
    if isinstance(row["prompt"], str):
        prompt = text_ids(qa.tokenizer, row["prompt"])
        ids = [*text_ids(qa.tokenizer, row["prompt"] + row["completion"]), qa.tokenizer.eos_token_id]
        start = common_prefix_length(prompt, ids)  # tokens may merge where the two meet; TRL's loss begins there, too
        return EncodedRow(row["prompt"], row["completion"].strip(), prompt, continuation(ids, start))
    turns: list[Any] = [*row["prompt"], *row["completion"]]
    return _conversation(qa, turns[:-1], turns[-1], row, where)


def split_passage(text: str, where: str) -> tuple[str, str]:
    """The beginning of a passage, and what follows, each with whole words.

    Raises:
        ValueError: it has fewer than two words.
    """
    words = text.split()
    start = min(PROMPT_WORDS, len(words) // 2)
    if start < 1:
        raise ValueError(f"{where} is a passage of {len(words)} words: it takes at least two.")
    return " ".join(words[:start]), f" {' '.join(words[start : start + CONTINUATION_WORDS])}"


def _passage(tokenizer: Any, text: str, where: str, prompt_tokens: int, continuation_tokens: int) -> EncodedRow:
    ids = text_ids(tokenizer, text)
    start = prompt_tokens if len(ids) >= 2 * prompt_tokens else len(ids) // 2
    if start < 1 or start == len(ids):
        raise ValueError(f"{where} is a passage of {len(ids)} tokens: it takes at least two.")
    ids = ids[: start + continuation_tokens]
    prompt, answer = (tokenizer.decode(part, skip_special_tokens=True).strip() for part in (ids[:start], ids[start:]))
    return EncodedRow(prompt, answer, ids[:start], continuation(ids, start))


def _conversation(qa: QAFormat, turns: list[Any], answer: Mapping[str, Any], row: Row, where: str) -> EncodedRow:
    from wagle_trainer.data.dataset_checks import naming_template
    from wagle_trainer.data.qa_format import common_prefix_length

    question, text = said(turns), said([answer])
    if qa.style == "plain":
        return EncodedRow(question, text, qa.prompt_ids(question), qa.encode(question, text))
    # As TRL: the row's tools, and its own variables of the template over those of the format.
    tools, own = row.get("tools"), row.get("chat_template_kwargs") or {}
    options = {**qa.chat_template_kwargs, **{name: value for name, value in own.items() if value is not None}}
    options["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    with naming_template(where):
        prompt, ids = (
            list(
                qa.tokenizer.apply_chat_template(
                    messages, tokenize=True, return_dict=True, add_generation_prompt=generation, **options
                )["input_ids"]
            )
            for messages, generation in ((turns, True), ([*turns, answer], False))
        )
    return EncodedRow(question, text, prompt, continuation(ids, common_prefix_length(prompt, ids)))
