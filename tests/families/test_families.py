"""Every model family: each cell of the table in docs/models.md is right, or a refusal by name.

python tests/families/test_families.py      runs all cells and writes the table
"""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports test files without their folder

from cells import CELLS, WRONG, outcome, trainer_of
from tiny_models import FAMILIES, build

pytestmark = [pytest.mark.families, pytest.mark.slow]

# T5's adapter is compared by a forward pass without an encoder's input, which is Transformers' error.
ENCODER_DECODER = r"encoder|causal|exactly one of input_ids"


def expected(cell: str, family: str, found: str) -> bool:
    """Whether the outcome of a cell is what is known of it."""
    if (cell, family) in WRONG:
        return WRONG[cell, family] in found
    if not found.startswith(("refused: ", "wrong: ")):
        return True
    return "encoder-decoder" in family and re.search(f"refused: .*({ENCODER_DECODER})", found, re.I) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    found = {cell: outcome(cell, family) for cell in CELLS}
    unexpected = {cell: text for cell, text in found.items() if not expected(cell, family, text)}
    assert not unexpected


@pytest.mark.parametrize("family", [family for family in FAMILIES if "multimodal" in family])
@pytest.mark.parametrize(
    ("loss_type", "kwargs"),
    [("rmu", {"layer": 0, "coefficient": 5.0}), ("npo", {"retain_loss": "embed_diff", "retain_layer": 0})],
    ids=["rmu", "embed_diff"],
)
def test_hidden_states_of_multimodal_models(family, loss_type, kwargs, tmp_path):
    """They are those of the language model, whose layers no list of the whole model's configuration counts."""
    model = build(family)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer_of(
        model, str(tmp_path), loss_type=loss_type, loss_kwargs=kwargs, attribution=None, weight_decay=0.0
    ).train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    layers = {index: [name for name in moved if re.search(rf"layers\.{index}\.", name)] for index in (0, 1)}
    assert layers[0] and not any("vision" in name or "visual" in name for name in moved)
    assert bool(layers[1]) == (loss_type == "npo")  # RMU has no gradient above its layer
