"""Aligned plain-text tables: the one printer that everything uses."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], header: int = 1) -> str:
    """Rows of cells as aligned text, the first column to the left and the others to the right.

    Args:
        rows: cells, as many in every row.
        header: number of rows above the rule; 0 for no rule.

    Example:
        >>> print(text_table([["", "prob"], ["before", "0.98"]]))
                prob
        ------  ----
        before  0.98
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    if header:
        lines.insert(header, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
