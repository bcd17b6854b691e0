"""`import wagle_trainer` is light: scoring, masks and losses run where TRL is not installed."""

import pytest

import wagle_trainer

HEAVY = ["accelerate", "datasets", "peft", "transformers", "trl"]

# Whatever is heavy cannot be imported, as where it is not installed.
WITHOUT_HEAVY = f"""
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""

USE = """
import types, torch
from wagle_trainer import WeightMask, attribute
from wagle_trainer.losses import LossInputs, get_loss
from wagle_trainer.masking import MaskedUpdates

class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(7, 7)
    def forward(self, input_ids, attention_mask=None):
        return types.SimpleNamespace(logits=self.table(input_ids))

model, ids = Bigram(), torch.tensor([[1, 2, 3]])
mask = attribute(model, [{"input_ids": ids, "labels": ids}], [{"input_ids": ids, "labels": ids}], density=0.5, progress=False)
assert isinstance(mask, WeightMask) and mask.num_selected == 24
MaskedUpdates(model, mask, torch.optim.AdamW(model.parameters()))
get_loss("npo")()
"""


STATEMENTS = [
    "import wagle_trainer",
    "from wagle_trainer import attribute, WeightMask",
    "import wagle_trainer.attribution, wagle_trainer.masking, wagle_trainer.losses",
    "import wagle_trainer.models.log_probs, wagle_trainer.models.reference_log_probs, wagle_trainer.data.pairing",
]
MODULES = "\nimport sys\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"


@pytest.fixture(scope="module")
def results(run_fresh):
    """Code -> (exit code, output), after torch alone was imported."""
    codes = [
        *(statement + MODULES for statement in STATEMENTS),
        WITHOUT_HEAVY + USE,
        WITHOUT_HEAVY + "from wagle_trainer import WagleTrainer",
    ]
    return dict(zip(codes, run_fresh(codes, "torch"), strict=True))


@pytest.mark.parametrize("statement", STATEMENTS)
def test_imports_nothing_heavy(statement, results):
    code, output = results[statement + MODULES]
    assert code == 0, output
    assert "wagle_trainer" in output.split()
    assert not set(output.split()) & set(HEAVY)


def test_import_alone_does_not_even_load_torch(run_fresh):
    assert run_fresh(["import wagle_trainer, sys; assert 'torch' not in sys.modules"]) == [(0, "")]


def test_scores_masks_and_losses_work_without_trl(results):
    code, output = results[WITHOUT_HEAVY + USE]
    assert code == 0, output
    code, output = results[WITHOUT_HEAVY + "from wagle_trainer import WagleTrainer"]
    assert code == 1
    assert "ModuleNotFoundError" in output


@pytest.mark.parametrize("name", wagle_trainer.__all__)
def test_every_public_name_resolves(name):
    assert getattr(wagle_trainer, name) is not None
    assert name in dir(wagle_trainer)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'WagleTrainor'"):
        _ = wagle_trainer.WagleTrainor
