"""Draws `docs/overview.svg`, the one picture of the README: from two sets to a patch that can be revoked.

python docs/draw_overview.py
"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 960, 330
INK, QUIET, BLUE, ORANGE, GREY, PAPER = "#1b1f24", "#57606a", "#0059a8", "#d35400", "#c8d0d8", "#ffffff"
COLUMNS, ROWS, CELL = 12, 10, 13
# Which cells of the little weight matrix are selected: few, and not in a pattern.
SELECTED = {(2, 1), (5, 2), (6, 2), (9, 3), (3, 5), (4, 5), (8, 6), (1, 7), (10, 8), (6, 9)}


def text(x: float, y: float, words: str, size: int = 15, color: str = INK, weight: int = 400) -> str:
    """A line of text, centred at x."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" font-weight="{weight}" text-anchor="middle">'
        f"{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, color: str) -> str:
    """A rounded frame."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{PAPER}" stroke="{color}" '
        'stroke-width="2"/>'
    )


def arrow(x: float, y: float, length: float) -> str:
    """An arrow to the right."""
    end = x + length
    return (
        f'<path d="M{x} {y} H{end - 8}" stroke="{QUIET}" stroke-width="2"/>'
        f'<path d="M{end} {y} l-10 -5 v10 z" fill="{QUIET}"/>'
    )


def matrix(x: float, y: float) -> str:
    """A matrix of weights, the selected ones in color."""
    cells = [
        f'<rect x="{x + column * CELL}" y="{y + row * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2" '
        f'fill="{ORANGE if (column, row) in SELECTED else GREY}"/>'
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]
    return "".join(cells)


def overview() -> str:
    """The picture as SVG."""
    parts = [
        box(20, 60, 170, 70, ORANGE),
        text(105, 90, "forget set", 17, INK, 600),
        text(105, 113, "what must go", 14, QUIET),
        box(20, 160, 170, 70, BLUE),
        text(105, 190, "retain set", 17, INK, 600),
        text(105, 213, "what must stay", 14, QUIET),
        arrow(200, 145, 90),
        text(245, 128, "score", 14, QUIET),
        matrix(303, 82),
        text(380, 60, "few weights may change", 15, INK, 600),
        text(380, 240, "all others keep their bits", 14, QUIET),
        arrow(470, 145, 90),
        text(515, 128, "train", 14, QUIET),
        box(570, 110, 130, 70, ORANGE),
        text(635, 140, "patch", 17, INK, 600),
        text(635, 163, "a small file", 14, QUIET),
        arrow(710, 145, 60),
        box(780, 40, 160, 54, GREY),
        text(860, 72, "apply, combine", 15),
        box(780, 118, 160, 54, GREY),
        text(860, 150, "revoke: base again", 15),
        box(780, 196, 160, 54, GREY),
        text(860, 228, "attack and report", 15),
        text(480, 296, "scores and masks · training · patches · evaluation, attacks and verdict", 14, QUIET),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\">"
        "<title>From a forget set and a retain set, weights are scored; few may change; training makes a small patch, "
        "which can be applied, combined, revoked, attacked and reported</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{PAPER}"/>' + "".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("overview.svg").write_text(overview(), encoding="utf-8")
