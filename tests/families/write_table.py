"""Runs every cell of every family and writes docs/models.md:  python tests/families/write_table.py"""

from pathlib import Path

from cells import CELLS, REASONS, outcome
from tiny_models import CAUSAL, FAMILIES, build

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
HEAD = """# Which models work

Every row is a tiny random model of a Transformers family, every column a test on it (`tests/families`, run by
`pytest -m families`): right, refused by an error that says why, or known to be wrong. Written by `python tests/families/write_table.py`
with transformers {version}.

| Column | What is compared |
|---|---|
{columns}

{table}
"""


def write() -> None:
    """Run all cells and write the document."""
    import transformers

    columns = [f"| {cell} | {' '.join((function.__doc__ or '').split())} |" for cell, function in CELLS.items()]
    lines = ["| Family | Class | " + " | ".join(CELLS) + " |", "|---" * (len(CELLS) + 2) + "|"]
    notes: dict[str, int] = {}
    for family in FAMILIES:
        cells = []
        for cell in CELLS:
            found = outcome(cell, family)
            kind, _, _ = found.partition(": ")
            if kind in ("refused", "wrong"):
                found += f" ({REASONS[cell, family]})" if (cell, family) in REASONS else ""
                number = notes.setdefault(found, len(notes) + 1)
                found = f"{kind} ({number})"
            cells.append(found)
        name = CAUSAL[family][0] if family in CAUSAL else type(build(family)).__name__
        lines.append(f"| {family} | `{name}` | " + " | ".join(cells) + " |")
    listed = "".join(f"\n{number}. {' '.join(text.split())}" for text, number in notes.items())
    table = "\n".join(lines) + (f"\n\nNotes:\n{listed}" if notes else "")
    DOCUMENT.write_text(HEAD.format(version=transformers.__version__, columns="\n".join(columns), table=table))


if __name__ == "__main__":
    write()
