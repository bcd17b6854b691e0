"""Rows that share a subject: which of them belong together, and subsets that are even over the subjects.

The first rows of a set are often about one subject, such as TOFU's first 20 about one author: a number measured on them
says little about the set, and an interval over them is too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

GROUP, SET_SIZE = "group", "set_size"


def even_rows(groups: Sequence[int | str], number: int) -> list[int]:
    """Rows of a subset that is even over groups and over each group's rows; in the order of the rows.

    Args:
        groups: the group of each row.
        number: of rows, at least 1; all rows if there are no more.

    Example:
        >>> even_rows(["a", "a", "a", "b", "b", "b"], 2)
        [0, 3]
        >>> even_rows(["a", "b", "c", "d"], 2)
        [0, 2]
    """
    by_group: dict[int | str, list[int]] = {}
    for row, group in enumerate(groups):
        by_group.setdefault(group, []).append(row)
    taken = dict.fromkeys(by_group, 0)
    left = min(number, len(groups))
    while left:  # one round takes the same from each group that has rows left, the last round from some of them
        open_groups = [group for group in by_group if taken[group] < len(by_group[group])]
        for group in _spread(open_groups, min(left, len(open_groups))):
            taken[group] += 1
            left -= 1
    return sorted(row for group, rows in by_group.items() for row in _spread(rows, taken[group]))


def _spread(items: Sequence, number: int) -> list:
    """`number` of the items, evenly spaced, from the first on."""
    return [items[index * len(items) // number] for index in range(number)]


def with_groups(rows: Dataset, rows_per_group: int | None, limit: int | None = None) -> Dataset:
    """Rows with a column "group", and a subset of them that is even over groups.

    Args:
        rows: of a set; their own column "group" stays.
        rows_per_group: number of consecutive rows of a group; None where each row is one of its own: then there is no
            column.
        limit: number of rows; None for all. A subset has a column "set_size", the number of rows that it was drawn from.

    Raises:
        ValueError: `limit` is no whole number, or below 1.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be at least 1, a whole number, or None for all rows; got {limit!r}.")
    size = len(rows)
    if GROUP not in rows.column_names and rows_per_group is not None:
        rows = rows.add_column(GROUP, [row // rows_per_group for row in range(size)])
    if limit is None or limit >= size:
        return rows
    groups = list(rows[GROUP]) if GROUP in rows.column_names else list(range(size))
    return rows.select(even_rows(groups, limit)).add_column(SET_SIZE, [size] * limit)
