"""One reader for the files of a user: `read_examples`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.reading.conversations import last_answer, said
from wagle_trainer.data.reading.files import data_files, kind_of, load_from_hub, read_file, read_folder
from wagle_trainer.data.reading.shapes import GROUP, KNOWN, ColumnNames, Kind, Shape, find_shape
from wagle_trainer.data.reading.values import (
    as_messages,
    as_texts,
    as_texts_or_messages,
    as_tools,
    chosen_texts,
    look_like_choices,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from wagle_trainer.data.qa_format import QAFormat

PARAPHRASE = "paraphrased_question"  # TOFU's, for the attack of that name
_COUNTED_ROWS = 10_000  # beyond, the number of tokens is estimated from so many rows


@dataclass
class Examples:
    """The rows of a set under known names, and what was understood of the file.

    Attributes:
        rows: a `datasets.Dataset` in memory, in the order of the file. Its columns follow from `kind`, and there is a
            column `group` if the file says what rows have in common.
        kind: "questions" (`question`, `answer`, and `paraphrased_question` if it is there), "completions" (`prompt`, `completion`, both as text or both as messages),
            "preferences" (`prompt` unless it is part of the answers, `chosen`, `rejected`), "messages" (`messages`, and
            `tools` if there are any), "passages" (`text`) or "tokens" (`input_ids`, and `labels` or masks).
        source: where they come from.
        read: column of `rows` -> columns of the file that it comes from.
        ignored: columns of the file that were not read.
        notes: what else a reader should know: encoding, separator, numbers read as text.
    """

    rows: Dataset
    kind: Kind
    source: str
    read: dict[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_groups(self) -> int | None:
        """Number of groups of rows; None if each row counts as one of its own."""
        return len(set(self.rows[GROUP])) if GROUP in self.rows.column_names else None

    def training_set(self, qa: QAFormat) -> Dataset:
        """The rows in a TRL format: questions, answers and conversations as `qa` writes them, all others as they are.

        Of `messages` the last answer is the completion and the turns before it are the prompt, as in evaluation.

        Args:
            qa: how questions and answers become text; conversations take its template variables, or its plain style.

        Raises:
            ValueError: as `QAFormat.dataset`; the message names the source.
        """
        if self.kind == "questions":
            return qa.dataset(self.rows)
        if self.kind == "messages" or (self.kind == "completions" and isinstance(self.rows[0]["prompt"], list)):
            return self._conversations(qa)
        return self.rows.remove_columns([GROUP]) if GROUP in self.rows.column_names else self.rows

    def _conversations(self, qa: QAFormat) -> Dataset:
        from datasets import Dataset

        if self.kind == "messages":
            turns = enumerate(self.rows["messages"])
            split = [last_answer(messages, f"Row {row} of {self.source}") for row, messages in turns]
            prompts, completions = [prompt for prompt, _ in split], [[answer] for _, answer in split]
        else:
            prompts, completions = list(self.rows["prompt"]), list(self.rows["completion"])
        if qa.style == "plain":
            texts = {"question": list(map(said, prompts)), "answer": list(map(said, completions))}
            return qa.dataset(Dataset.from_dict(texts))
        columns: dict[str, list[Any]] = {"prompt": prompts, "completion": completions}
        if "tools" in self.rows.column_names:
            columns["tools"] = list(self.rows["tools"])
        if qa.chat_template_kwargs:
            columns["chat_template_kwargs"] = [dict(qa.chat_template_kwargs)] * len(prompts)
        return Dataset.from_dict(columns, on_mixed_types="use_json")

    def texts(self) -> list[str]:
        """The text of each row, without what a format adds; empty for tokenized rows."""
        return [
            "\n".join(_texts_in([row[name] for name in row if name not in (GROUP, PARAPHRASE)])) for row in self.rows
        ]

    def num_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Number of tokens of all texts; estimated from 10,000 rows where there are more.

        Args:
            tokenizer: the model's.
        """
        if self.kind == "tokens":
            return sum(map(len, self.rows["input_ids"]))
        texts = self.texts()
        counted = texts[:: -(-len(texts) // _COUNTED_ROWS)]
        number = sum(len(ids) for ids in tokenizer(text=counted, add_special_tokens=False)["input_ids"])
        return round(number * len(texts) / len(counted))

    def summary(self, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
        """What was understood, as JSON can hold it.

        Args:
            tokenizer: counts the tokens; None for no count.
        """
        return {
            "source": self.source,
            "kind": self.kind,
            "rows": len(self),
            "tokens": None if tokenizer is None else self.num_tokens(tokenizer),
            "groups": self.num_groups,
            "read": {name: list(columns) for name, columns in self.read.items()},
            "ignored": list(self.ignored),
            "notes": list(self.notes),
        }

    def report(self, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """What was understood, as a line of text, and a line for each note.

        Args:
            tokenizer: counts the tokens; None for no count.
        """
        found = self.summary(tokenizer)
        sizes = [f"{found['rows']:,} rows"]
        if found["tokens"] is not None:
            sizes.append(f"{'about ' if len(self) > _COUNTED_ROWS else ''}{found['tokens']:,} tokens")
        sizes.append("no groups" if found["groups"] is None else f"{found['groups']:,} groups")
        columns = ", ".join(
            name if columns == (name,) else f"{name} from {' and '.join(map(repr, columns))}"
            for name, columns in self.read.items()
        )
        ignored = ", ".join(map(repr, self.ignored)) or "none"
        lines = [f"{self.source}: {', '.join(sizes)}. Columns read: {columns}. Ignored: {ignored}."]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def read_examples(
    source: str | Path,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    text_column: str | None = None,
    group_column: str | None = None,
    config: str | None = None,
    split: str | None = None,
    encoding: str | None = None,
) -> Examples:
    """Read the file that a user has, and say what was understood of it.

    Files: `.json`, `.jsonl`, `.ndjson`, `.csv` (separated by commas, semicolons, tabs or bars), `.tsv`, `.parquet`, `.txt` (a
    passage per empty line), also compressed (`.gz`, `.bz2`, `.xz`); folders with such files, as the hub stores them, or of
    `save_to_disk`; hub ids. They are read in memory: `datasets` leaves no copy in its cache.

    Known by themselves: question and answer; prompt and completion; prompt, chosen and rejected; messages; ShareGPT;
    Alpaca; query and response and their like; text and labels (KnowUnDo); text; tokens. Anything else by the names of its
    columns. Of a multiple-choice question the text of the answer is read, not its number.

    Args:
        source: a file, a folder or a hub id; `PLACE:CONFIG:SPLIT`, `PLACE:CONFIG` and `PLACE::SPLIT` name a configuration
            and a split of a folder or of the hub.
        question_column: its name in the file, if it is not known by itself. Names count where the file has such columns.
        answer_column: likewise.
        text_column: likewise, of passages.
        group_column: of what rows have in common, such as the person that they are about; "group" is known by itself.
        config: of a folder or hub dataset; None for the one in `source`, or the only one.
        split: likewise; None for the one in `source`, the only one, or "train".
        encoding: of a text file; None for UTF-8.

    Raises:
        FileNotFoundError: there is no such file, folder, split or dataset.
        ValueError: the file cannot be read, has no rows, or no known columns; a row has nothing in a column that is
            read. The message names the file and the option that helps.

    Example:
        ```python
        forget = read_examples("forget.csv", question_column="Frage", answer_column="Antwort")
        print(forget.report())
        trainer = WagleTrainer(..., forget_dataset=forget.training_set(QAFormat.for_tokenizer(tokenizer)))
        ```
    """
    names = ColumnNames(question_column, answer_column, text_column, group_column)
    notes: list[str] = []
    table = read_table(source, config=config, split=split, encoding=encoding, notes=notes)
    if len(table) == 0:
        raise ValueError(f"{source} has no rows.")
    try:
        return _examples(table.with_format(None), str(source), names, notes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def read_table(
    source: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    encoding: str | None = None,
    notes: list[str] | None = None,
) -> Dataset:
    """All columns of a file, a folder or a hub dataset, in memory; arguments and errors as for `read_examples`.

    Args:
        config: of a Hub dataset.
        split: of a Hub dataset.
        encoding: of a text file.
        notes: gets a sentence for each thing that the reader decided.
        source: file, folder or Hub dataset.
    """
    place, named_config, named_split = parse_source(str(source))
    config, split = config or named_config, split or named_split
    path = Path(place).expanduser()
    if path.is_dir():
        return read_folder(path, config, split, encoding=encoding, notes=notes)
    if path.is_file():
        return read_file(path, encoding=encoding, split=split or config, notes=notes)
    if kind_of(path) is not None or path.is_absolute() or place.startswith((".", "~")):
        raise FileNotFoundError(f"There is no file {place}.{_near(path)}")
    try:
        return load_from_hub(place, config, split or "train")
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{place!r} is neither a file, a folder, nor a dataset that the hub gives access to ({error}).{_near(path)}"
        ) from error


def parse_source(source: str) -> tuple[str, str | None, str | None]:
    """PLACE:CONFIG:SPLIT as its parts; None for those that are not there."""
    if ":" not in source or Path(source).expanduser().exists():
        return source, None, None
    place, config, split = [*source.split(":", 2), ""][:3]
    return place, config or None, split or None


def _near(path: Path) -> str:
    folder = path.parent
    there = [name for files in data_files(folder).values() for name in (file.name for file in files)]
    return f" The folder {folder} has {', '.join(there[:8])}." if there else ""


def _examples(table: Dataset, source: str, names: ColumnNames, notes: list[str]) -> Examples:
    from datasets import Dataset

    columns = {name: list(table[name]) for name in table.column_names}
    shape = find_shape(columns, names)
    if shape is None:
        raise ValueError(_unknown(list(columns), names))
    read: dict[str, tuple[str, ...]] = {name: (column,) for name, column in shape.columns.items()}
    found = _canonical(columns, shape, notes)
    if "input" in read:
        read["question"] += read.pop("input")
    if shape.kind in ("messages", "completions", "preferences") and "tools" in columns:
        found["tools"], read["tools"] = as_tools(columns["tools"]), ("tools",)
    if shape.kind == "questions" and all(isinstance(value, str) for value in columns.get(PARAPHRASE, [None])):
        found[PARAPHRASE], read[PARAPHRASE] = columns[PARAPHRASE], (PARAPHRASE,)
    group = names.group_column if names.group_column in columns else GROUP if GROUP in columns else None
    if group is not None and group not in shape.columns.values():
        found[GROUP], read[GROUP] = _groups(columns[group], group), (group,)
    taken = {column for columns_of in read.values() for column in columns_of} | set(shape.choices)
    ignored = tuple(name for name in columns if name not in taken)
    missing = {option: name for option, name in names.given().items() if name not in columns}
    notes += [
        f"there is no column {name!r} (--{option}): what is known by itself is read"
        for option, name in missing.items()
    ]
    rows = Dataset.from_dict(found, on_mixed_types="use_json")
    return Examples(rows, shape.kind, source, read, ignored, notes)


def _unknown(columns: Sequence[str], names: ColumnNames) -> str:
    given = "".join(
        f" --{option} {name!r} is not among them, or not enough." for option, name in names.given().items()
    )
    return (
        f"the columns {', '.join(map(repr, columns))} are of no known kind.{given} Name those that hold questions and answers "
        "by --question_column and --answer_column, or the one that holds passages by --text_column (in Python the same "
        f"without --). Known by themselves are: {KNOWN}."
    )


def _canonical(columns: dict[str, list[Any]], shape: Shape, notes: list[str]) -> dict[str, list[Any]]:
    """The columns of `shape.kind`, as `Examples` says."""
    of = {name: columns[column] for name, column in shape.columns.items()}
    if shape.kind == "questions":
        return _questions(columns, shape, notes)
    if shape.kind == "passages":
        texts = as_texts(of["text"], shape.columns["text"], notes)
        _refuse_empty(texts, shape.columns["text"])
        return {"text": texts}
    if shape.kind == "tokens":
        return of
    if shape.kind == "messages":
        conversations = as_messages(of["messages"], shape.columns["messages"], notes)
        _check_answers(conversations, notes)
        return {"messages": conversations}
    if (
        shape.kind == "preferences"
        and isinstance(of["chosen"][0], list)
        and isinstance(of.get("prompt", [[]])[0], str)
    ):
        del of["prompt"]  # it is part of the answers
    found = as_texts_or_messages(of, notes)
    if shape.kind == "completions" and isinstance(found["prompt"][0], str):
        joined = found["prompt"][0][-1:] + found["completion"][0][:1]
        if joined and not any(letter.isspace() for letter in joined):
            notes.append(
                f"prompt and completion are joined as they stand, '...{found['prompt'][0][-8:]}{found['completion'][0][:8]}...'; "
                "for questions and answers in the model's format: --question_column prompt --answer_column completion"
            )
    return found


def _questions(columns: dict[str, list[Any]], shape: Shape, notes: list[str]) -> dict[str, list[Any]]:
    question, answer = shape.columns["question"], shape.columns["answer"]
    answers = columns[answer]
    if shape.choices:
        answers = chosen_texts(answers, {name: columns[name] for name in shape.choices}, answer, notes)
    texts, replies = as_texts(columns[question], question, notes), as_texts(answers, answer, notes)
    if "input" in shape.columns:
        beside = as_texts(columns[shape.columns["input"]], shape.columns["input"], notes, may_be_empty=True)
        texts = [f"{text}\n{more}" if more.strip() else text for text, more in zip(texts, beside, strict=True)]
    _refuse_empty(texts, question)
    if look_like_choices(replies) and not shape.choices:
        notes.append(
            f"all values of {answer!r} are single letters or digits: if they number a choice, write its text into a column and "
            "name it by --answer_column"
        )
    return {"question": texts, "answer": replies}


def _refuse_empty(texts: Sequence[str], column: str) -> None:
    row = next((row for row, text in enumerate(texts) if not text.strip()), None)
    if row is not None:
        raise ValueError(f"Column {column!r} is empty in row {row}. Fix such rows, or take them out.")


def _check_answers(conversations: Sequence[Sequence[dict[str, Any]]], notes: list[str]) -> None:
    """Refuse conversations without an answer, or without a turn before it; note those with several answers."""
    several = 0
    for row, turns in enumerate(conversations):
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        if not answers:
            speakers = ", ".join(dict.fromkeys(str(turn["role"]) for turn in turns))
            raise ValueError(
                f"Row {row} has no turn of the assistant: its speakers are {speakers}. Write the answer as a message with the role "
                "assistant, or take the row out."
            )
        if answers[-1] == 0:
            raise ValueError(
                f"Row {row} has no turn before the answer of the assistant. Add what the user says, write such rows as text, or "
                "take the row out."
            )
        several += len(answers) > 1
    if several:
        notes.append(
            f"{several} of {len(conversations)} conversations have several answers: the last one is trained on and measured, "
            "the turns before it are its prompt"
        )


def _groups(values: Sequence[Any], column: str) -> list[Any]:
    """Groups as texts or whole numbers; a row without one is a group of its own."""
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    if whole:
        return list(values)
    return [f"{column} of row {row}" if value is None else str(value) for row, value in enumerate(values)]


def _texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return _texts_in(value["content"]) if "content" in value else []
    return [text for entry in value for text in _texts_in(entry)] if isinstance(value, list) else []


__all__ = ["Examples", "parse_source", "read_examples", "read_table"]
