"""TOFU, the task of fictitious unlearning: from the hub, from a local folder, or the bundled example in its format.

Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wagle_trainer.data.groups import with_groups
from wagle_trainer.data.sources import load_rows

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_PER_AUTHOR = 20
_RETAIN_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}


def load_tofu(name_or_path: str, split: str) -> Dataset:
    """One split of TOFU.

    Args:
        name_or_path: `"fictional"` (the bundled example), a folder with a JSON-lines file `<split>.json` per split,
            or a hub id such as `"locuslab/TOFU"`.
        split: a split name as on the hub: `"full"`, `"forget10"`, `"retain90"`, `"forget10_perturbed"`, `"holdout10"`, ...

    Returns:
        Rows with `question` and `answer`; the `*_perturbed` splits also have `perturbed_answer` (a list of strings)
        and, for forget and retain, `paraphrased_question` and `paraphrased_answer`.

    Raises:
        FileNotFoundError: the folder, its file or the hub dataset cannot be found.
        ValueError: unknown split of the bundled example or of the hub dataset.
    """
    if name_or_path == "fictional":
        from .fictional import fictional_split

        return fictional_split(split)

    return load_rows(name_or_path, split, config=split, hint=", or 'fictional' for the bundled example")


def load_tofu_evaluation(name_or_path: str, forget_split: str, limit: int | None = None) -> dict[str, Dataset]:
    """The sets that TOFU's metrics are computed on, by the name they have in the results.

    Args:
        name_or_path: as for `load_tofu`.
        forget_split: `"forget01"`, `"forget05"` or `"forget10"`.
        limit: rows of each set, drawn evenly over the authors; None for all.

    Returns:
        `forget`, `retain`, `real_authors` and `world_facts`, each a `*_perturbed` split; and `holdout`, questions about
        people that no model was trained on, where there is such a split (`"holdout01"` for `"forget01"`). Rows about
        invented authors have a column `group`, which says whose they are; intervals need it. With `limit`, the column
        `set_size` is the number of rows of the full set.

    Raises:
        FileNotFoundError, ValueError: as `load_tofu`.
        ValueError: `limit` below 1.
    """
    names = {"forget": forget_split, "retain": "retain", "real_authors": "real_authors", "world_facts": "world_facts"}
    sets = {key: load_tofu(name_or_path, f"{name}_perturbed") for key, name in names.items()}
    holdout = _holdout(name_or_path, forget_split.replace("forget", "holdout"))
    if holdout is not None:
        sets["holdout"] = holdout
    return {
        key: with_groups(rows, _rows_per_author(name_or_path, key, len(rows)), limit) for key, rows in sets.items()
    }


def _rows_per_author(name_or_path: str, key: str, rows: int) -> int | None:
    """How many consecutive rows are about one author; None where single rows are independent."""
    if key in ("real_authors", "world_facts"):
        return None
    if name_or_path == "fictional":
        from .fictional import QUESTIONS_PER_PERSON

        return QUESTIONS_PER_PERSON
    # Other files in TOFU's format need not come in its blocks.
    return _ROWS_PER_AUTHOR if rows >= 2 * _ROWS_PER_AUTHOR and rows % _ROWS_PER_AUTHOR == 0 else None


def _holdout(name_or_path: str, split: str) -> Dataset | None:
    folder = Path(name_or_path).expanduser().is_dir()
    try:
        return load_tofu(name_or_path, split)
    except ValueError:  # no such split on the hub, or of the bundled example
        if folder:
            raise  # the file is there, but broken
    except FileNotFoundError:
        if not folder:
            raise  # the hub cannot be reached
    return None


def retain_split_for(forget_split: str) -> str:
    """The split that holds all rows of `full` which `forget_split` does not: `"retain90"` for `"forget10"`.

    Args:
        forget_split: such as "forget10".

    Raises:
        ValueError: not a forget split of TOFU; the message lists them.
    """
    if forget_split not in _RETAIN_SPLITS:
        raise ValueError(f"{forget_split!r} is not a forget split of TOFU: use one of {', '.join(_RETAIN_SPLITS)}.")
    return _RETAIN_SPLITS[forget_split]
