"""Rows that are both in the forget and in the retain set: they are not forgotten."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

# What a row is known by; a preference row by what must be forgotten of it, or kept.
_FORGOTTEN = (
    "question",
    "answer",
    "prompt",
    "completion",
    "rejected",
    "messages",
    "conversations",
    "text",
    "input_ids",
)
_KEPT = tuple("chosen" if name == "rejected" else name for name in _FORGOTTEN)


def overlapping_rows(forget: Dataset, retain: Dataset) -> list[int]:
    """Rows of the retain set that are in the forget set, but for case and white space.

    Args:
        forget: in the format of `retain`, or else no row is found.
        retain: as `read_examples` or TRL has them.
    """
    known = {_key(row, _FORGOTTEN) for row in _of(forget, _FORGOTTEN)}
    return [index for index, row in enumerate(_of(retain, _KEPT)) if _key(row, _KEPT) in known]


def warn_of_overlap(forget: Dataset, retain: Dataset, forget_term: bool = True) -> None:
    """Count the rows that are in both sets in a warning.

    Args:
        forget, retain: as for `overlapping_rows`.
        forget_term: whether the objective has a loss on the forget set, which the retain loss of the same rows cancels.
    """
    both = overlapping_rows(forget, retain)
    if both:
        shown = f"{', '.join(map(str, both[:5]))}{', ...' if len(both) > 5 else ''}"
        why = (
            "their losses cancel out"
            if forget_term
            else "the objective trains on the retain set alone, which teaches them"
        )
        warnings.warn(
            f"{len(both)} of {len(retain)} rows of the retain set are in the forget set, too (rows {shown}): {why}, and "
            "what they say is not forgotten. Take them out of the retain set (command line: --drop_overlap).",
            stacklevel=3,
        )


def _of(rows: Dataset, names: tuple[str, ...]) -> Dataset:
    """The columns that a row is known by."""
    return rows.with_format(None).select_columns([name for name in names if name in rows.column_names])


def _key(row: Mapping[str, Any], names: tuple[str, ...]) -> int:
    values = [row[name] for name in names if name in row]
    return hash(json.dumps([_plain(value) for value in values], sort_keys=True, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items() if entry is not None}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
