"""What every suite does first: check the rows, tokenize, note the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# Why a number is missing that compares with a retrained model, and what to do.
MAKE_REFERENCE = (
    "needs a reference: train a model like this one without the forget set, on the retain set alone, evaluate it in the "
    "same way, and pass its results, or the file that save_results wrote, as reference (recipes: --retrained_model, "
    "wagle evaluate: --reference)"
)


def read_set(datasets: Mapping[str, Iterable[Row]], name: str, columns: Sequence[str]) -> list[Row]:
    """The rows of one set, each with something in each of `columns`.

    Raises:
        ValueError: the set is missing or empty, or a row has nothing in a column; the message says which.
    """
    if name not in datasets:
        raise ValueError(f"The evaluation needs the set {name!r}; given are {', '.join(datasets) or 'none'}.")
    rows = list(datasets[name])
    if not rows:
        raise ValueError(f"The evaluation set {name!r} is empty.")
    for column in columns:
        for index, row in enumerate(rows):
            if not row.get(column):
                raise ValueError(f"The evaluation set {name!r} has no {column!r} in row {index}.")
    return rows


def load_split(data: str, split: str, columns: Sequence[str], config: str | None, limit: int | None) -> Any:
    """The first rows of one split of a hub dataset, or of a folder with a file for each split.

    Args:
        data: hub id or folder.
        split: of the dataset; in a folder the file's name without its ending.
        columns: that the rows must have.
        config: the hub dataset's configuration; in a folder, the folder that the files are in.
        limit: number of rows; None for all.
    """
    from wagle_trainer.data.sources import first_rows, load_rows

    folder = "" if config is None else f"{config}/"
    return first_rows(load_rows(data, f"{folder}{split}", config=config, split=split, columns=columns), limit)


def groups_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The column "group" of a set's examples, if its rows say which of them belong together."""
    return {"group": [row["group"] for row in rows]} if all(row.get("group") is not None for row in rows) else {}


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text that goes on: with what the tokenizer puts before it, without an end-of-sequence token."""
    ids = list(tokenizer(text=text)["input_ids"])
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def continuation(ids: Sequence[int], prompt_tokens: int) -> dict[str, list[int]]:
    """`ids` as an example for `score_answers`: all that comes after the first `prompt_tokens` is to be scored."""
    return {"input_ids": list(ids), "labels": [-100] * prompt_tokens + list(ids[prompt_tokens:])}


def describe_model(model: Any) -> dict[str, str]:
    """The settings of a result that say which model it was."""
    return {
        "model": getattr(model.config, "name_or_path", ""),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
