"""The package speaks the field's language: words of our own that have a standard term do not return."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Our word -> the field's.
WORDS = {
    r"model before\b|before unlearning|ModelBefore": "reference model",
    r"\b(the|both|of all) halves\b": "forget batch, retain batch",
    r"\bsignals?\b": "loss inputs, model outputs",
    r"\blabel tokens?\b": "target token",
    r"\broles\b": "splits",
    r"\bpreferred\b": "chosen",
    r"\b(come|comes|came|bring|brings|brought) (it |them |\w+ )?back\b": "recovered, recovery rate",
    r"\b(hold|holds|held) (it |them )?against\b": "compared with",
    r"\basked for\b": "requested",
    r"\bmend(s|ed)?\b": "fix",
    r"\banew\b": "again",
    r"\bnobody\b": "no one",
    r"\bof which\b": "whose",
    r"\bbit for bit\b": "bitwise identical",
    r"\b(deal|deals|dealt) out\b|\bbrought together\b": "shard, gather",
    r"\bin step\b": "synchronised",
    r"\bempty talk\b": "vacuous mask",
    r"\bpoints? at\b": "targets",
    r"\bwhat it takes\b": "requirements",
}


def test_words_have_the_fields_names():
    """A few are fine: TRL's chat roles, or a sentence where the word means something else."""
    files = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")]
    for folder in ("wagle_trainer", "recipes", "docs"):
        files += [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml", ".html")]
    files += [path for path in (REPOSITORY / "benchmarks").iterdir() if path.suffix in (".py", ".md")]
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {match.group()!r}, say {term}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word, term in WORDS.items()
        for match in re.finditer(word, line, re.IGNORECASE)
    ]
    assert len(files) > 100
    assert len(found) <= 15, "\n" + "\n".join(found)
