"""Which columns of a table hold the questions, answers, messages or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from wagle_trainer.data.reading.parsing import MESSAGE_COLUMNS

Kind = Literal["questions", "completions", "preferences", "messages", "passages", "tokens"]

# Columns of questions and answers that are known by themselves, the first that a table has.
QUESTIONS_AND_ANSWERS = (
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "response"),
    ("question", "output"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "response"),
    ("problem", "solution"),
    ("q", "a"),
)
ALPACA_ANSWERS = ("output", "response", "answer", "completion")
ALPACA_INPUTS = ("input", "context")  # the latter is Dolly's
TEXTS = ("text", "content", "passage", "document", "body")
LABELS = ("labels", "label")  # KnowUnDo's answers to a `text`; numbers are classes of texts
CHOICES = ("choices", "options", "endings")
CHOICE_ANSWERS = ("answer", "answer_key", "answerkey", "correct_answer", "correct", "gold", "label", "target")
TOKENS = ("input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks")
GROUP = "group"

KNOWN = (
    "question and answer; prompt and completion; prompt, chosen and rejected; messages; conversations of from and value; "
    "instruction, input and output; query and response; text and labels; text"
)


@dataclass(frozen=True)
class ColumnNames:
    """Names of columns that a user gives for tables that are not known by themselves.

    Attributes:
        question_column: of the questions.
        answer_column: of the answers.
        text_column: of the passages, in place of questions and answers.
        group_column: of what rows have in common, such as the person that they are about.
    """

    question_column: str | None = None
    answer_column: str | None = None
    text_column: str | None = None
    group_column: str | None = None

    def __post_init__(self) -> None:
        if self.text_column is not None and (self.question_column or self.answer_column) is not None:
            raise ValueError("Give either text_column, or question_column and answer_column, not both.")

    def given(self) -> dict[str, str]:
        """The names that are not None."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {option: name for option, name in named.items() if name is not None}


@dataclass(frozen=True)
class Shape:
    """What a table holds, and where.

    Attributes:
        kind: of its rows.
        columns: what is read -> the column that has it.
        choices: columns with the answers to choose from, where the answer names one of them.
    """

    kind: Kind
    columns: Mapping[str, str]
    choices: tuple[str, ...] = ()


def find_shape(columns: Mapping[str, Sequence[Any]], names: ColumnNames) -> Shape | None:
    """The shape of a table; None if it is not known and `names` do not say it.

    Args:
        columns: name -> values. Upper case, spaces and underscores around words make no difference.
        names: those given by the user; they count more where the table has such columns.
    """
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(_plain(column), column)

    def pick(*wanted: str) -> dict[str, str] | None:
        return {name: by_name[name] for name in wanted} if all(name in by_name for name in wanted) else None

    def first(wanted: Sequence[str]) -> str | None:
        return next((by_name[name] for name in wanted if name in by_name), None)

    if names.text_column in columns:
        return Shape("passages", {"text": str(names.text_column)})
    given_question = names.question_column if names.question_column in columns else None
    given_answer = names.answer_column if names.answer_column in columns else None
    if given_question is not None or given_answer is not None:
        question = given_question or first([q for q, _ in QUESTIONS_AND_ANSWERS])
        answer = given_answer or first([a for _, a in QUESTIONS_AND_ANSWERS] + list(CHOICE_ANSWERS))
        if question is None or answer is None or question == answer:
            return None
        return Shape("questions", {"question": question, "answer": answer}, _choices(by_name, question, answer))

    choices = _choices(by_name)
    key = first(CHOICE_ANSWERS)
    if choices and key is not None and "question" in by_name:
        return Shape("questions", {"question": by_name["question"], "answer": key}, choices)
    if found := pick("question", "answer"):
        return Shape("questions", found)
    if found := pick("chosen", "rejected"):
        prompt = first(("prompt", "question", "query", "instruction"))
        return Shape("preferences", ({"prompt": prompt} if prompt is not None else {}) | found)
    if "input_ids" in by_name:
        return Shape("tokens", {name: by_name[name] for name in TOKENS if name in by_name})
    if found := pick("prompt", "completion"):
        return Shape("completions", found)
    for name in MESSAGE_COLUMNS:
        if name in by_name and _lists_of_dicts(columns[by_name[name]]):
            return Shape("messages", {"messages": by_name[name]})
    answer = first(ALPACA_ANSWERS)
    if "instruction" in by_name and answer is not None:
        beside = first(ALPACA_INPUTS)
        return Shape(
            "questions",
            {
                "question": by_name["instruction"],
                **({"input": beside} if beside is not None else {}),
                "answer": answer,
            },
        )
    for pair in QUESTIONS_AND_ANSWERS:
        if found := pick(*pair):
            return Shape("questions", {"question": found[pair[0]], "answer": found[pair[1]]})
    label = first(LABELS)
    if "text" in by_name and label is not None and all(isinstance(value, str | None) for value in columns[label]):
        return Shape("questions", {"question": by_name["text"], "answer": label})
    text = first(TEXTS)
    return Shape("passages", {"text": text}) if text is not None else None


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _lists_of_dicts(values: Sequence[Any]) -> bool:
    first = next((value for value in values if value), None)
    return isinstance(first, str) or (isinstance(first, list) and isinstance(first[0], dict))


def _choices(by_name: Mapping[str, str], *taken: str) -> tuple[str, ...]:
    """One column with lists of choices, or several with a choice each, in their order."""
    for name in CHOICES:
        if name in by_name and by_name[name] not in taken:
            return (by_name[name],)
    for pattern in ("{letter}", "option_{letter}", "choice_{letter}", "option{letter}", "choice{letter}"):
        for marks in ("abcdefgh", "01234567", "12345678"):
            found = []
            for letter in marks:
                name = pattern.format(letter=letter)
                if name not in by_name or by_name[name] in taken:
                    break
                found.append(by_name[name])
            if len(found) >= 2 and not (pattern == "{letter}" and len(found) == 2 and "q" in by_name):
                return tuple(found)
    return ()
