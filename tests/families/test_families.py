"""Every model family: each cell of the table in docs/models.md is right, or a refusal by name.

python tests/families/test_families.py      runs all cells and writes the table
"""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports test files without their folder

from cells import CELLS, NOT_REFUSED, outcome
from tiny_models import FAMILIES

pytestmark = [pytest.mark.families, pytest.mark.slow]

# Refusals that are right: (cell, family) -> what the error says.
MAMBA = "is incompatible with Mamba-based models"  # PEFT's
REFUSED = dict.fromkeys(
    [("LoRA by score", family) for family in ("falcon_mamba", "mamba", "mamba2", "nemotron_h")], MAMBA
)
# What is wrong and not yet fixed: (cell, family) -> how it shows. A fix has to take the entry out.
WRONG = {
    # Transformers' own: a batch of equal lengths generates something else than its rows alone.
    ("evaluation", "rwkv"): "greedy answers differ",
    # Transformers' own: save_pretrained and from_pretrained alone change the embeddings.
    ("training", "youtu"): "the saved model differs",
    # attribute and WagleTrainer refuse it; log-probabilities and evaluation do not ask yet.
    **{(cell, "bart (encoder-decoder)"): NOT_REFUSED for cell in ("log-probabilities", "evaluation")},
}
# T5's log-probabilities and evaluation end in Transformers' error.
ENCODER_DECODER = r"(?i)encoder|causal|exactly one of input_ids"


def expected(cell: str, family: str, found: str) -> bool:
    """Whether the outcome of a cell is what is known of it."""
    if (cell, family) in WRONG:
        return WRONG[cell, family] in found
    if not found.startswith(("refused: ", "wrong: ")):
        return True
    pattern = ENCODER_DECODER if "encoder-decoder" in family else REFUSED.get((cell, family))
    return found.startswith("refused: ") and pattern is not None and re.search(pattern, found) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    found = {cell: outcome(cell, family) for cell in CELLS}
    unexpected = {cell: text for cell, text in found.items() if not expected(cell, family, text)}
    assert not unexpected
