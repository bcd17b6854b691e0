"""MUSE, machine unlearning six-way evaluation: news articles or books to forget, from the hub or a local folder.

Source: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", arXiv 2407.06460.

The layout is that of `muse-bench/MUSE-News` and `muse-bench/MUSE-Books`. On the hub a subset is a configuration; in a
local folder it is a folder of JSON files, one for each split, with an object per row:

    <folder>/
    ├── raw/       forget.json, retain1.json, retain2.json, holdout.json          {"text"}
    ├── train/     full.json, retain.json                                         {"text"}
    ├── verbmem/   forget.json                                                    {"prompt", "gt"}
    ├── knowmem/   forget_qa.json, retain_qa.json,                                {"question", "answer"}
    │              forget_qa_icl.json, retain_qa_icl.json   examples shown before each question
    ├── privleak/  forget.json, holdout.json, retain.json                         {"text"}
    ├── scal/      forget_1.json to forget_4.json, each holding the one before    {"text"}
    └── sust/      forget_1.json to forget_4.json, each with other texts          {"text"}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wagle_trainer.data.sources import first_rows, load_rows

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = {
    "raw": ("text",),
    "train": ("text",),
    "verbmem": ("prompt", "gt"),
    "knowmem": ("question", "answer"),
    "privleak": ("text",),
    "scal": ("text",),
    "sust": ("text",),
}
# name in the results -> where it is
_EVALUATION = {
    "verbmem_forget": ("verbmem", "forget"),
    "knowmem_forget": ("knowmem", "forget_qa"),
    "knowmem_retain": ("knowmem", "retain_qa"),
    "privleak_forget": ("privleak", "forget"),
    "privleak_holdout": ("privleak", "holdout"),
}
_EXAMPLES = {"knowmem_forget_icl": ("knowmem", "forget_qa_icl"), "knowmem_retain_icl": ("knowmem", "retain_qa_icl")}


def load_muse(name_or_path: str, subset: str, split: str) -> Dataset:
    """One split of one subset of MUSE, such as `load_muse("muse-bench/MUSE-News", "sust", "forget_1")`.

    Args:
        name_or_path: a hub id, or a folder in the layout above.
        subset: raw, train, verbmem, knowmem, privleak, scal or sust.
        split: a split of it.

    Returns:
        Rows with `text`, with `prompt` and `gt` (verbmem), or with `question` and `answer` (knowmem).

    Raises:
        FileNotFoundError: the file or the hub dataset is missing; the message names it.
        ValueError: unknown subset, the hub dataset has no such split, a column is missing, or there are no rows.
    """
    if subset not in _COLUMNS:
        raise ValueError(f"{subset!r} is not a subset of MUSE: use one of {', '.join(_COLUMNS)}.")
    return load_rows(name_or_path, f"{subset}/{split}", config=subset, split=split, columns=_COLUMNS[subset])


def load_muse_evaluation(name_or_path: str, *, few_shot: bool = True, limit: int | None = None) -> dict[str, Dataset]:
    """The sets that `evaluate_muse` takes, by the name they have in the results.

    Args:
        name_or_path: as for `load_muse`.
        few_shot: also load the questions and answers that are shown before each question of knowmem, as in the paper.
        limit: take only the first `limit` rows of each set (not of the examples shown); None for all.

    Returns:
        verbmem_forget, knowmem_forget, knowmem_retain, privleak_forget and privleak_holdout (these two not for a local
        folder without `privleak`), and with `few_shot` knowmem_forget_icl and knowmem_retain_icl.

    Raises:
        FileNotFoundError, ValueError: as `load_muse`.
        ValueError: `limit` below 1.
    """
    folder = Path(name_or_path).expanduser()
    left_out = {"privleak"} if folder.is_dir() and not (folder / "privleak").is_dir() else set()
    sets = {
        name: first_rows(load_muse(name_or_path, *place), limit)
        for name, place in _EVALUATION.items()
        if place[0] not in left_out
    }
    if few_shot:
        sets |= {name: load_muse(name_or_path, *place) for name, place in _EXAMPLES.items()}
    return sets
