"""`import wagle_trainer` is light: scoring, masks and losses run where TRL is not installed."""

import subprocess
import sys

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


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "statement",
    [
        "import wagle_trainer",
        "from wagle_trainer import attribute, WeightMask",
        "import wagle_trainer.attribution, wagle_trainer.masking, wagle_trainer.losses",
        "import wagle_trainer.models.log_probs, wagle_trainer.models.reference_model, wagle_trainer.data.pairing",
    ],
)
def test_imports_nothing_heavy(statement):
    result = run(f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))")
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & set(HEAVY)


def test_import_alone_does_not_even_load_torch():
    assert run("import wagle_trainer, sys; sys.exit('torch' in sys.modules)").returncode == 0


def test_scores_masks_and_losses_work_without_trl():
    result = run(WITHOUT_HEAVY + USE)
    assert result.returncode == 0, result.stderr
    blocked = run(WITHOUT_HEAVY + "from wagle_trainer import WagleTrainer")
    assert blocked.returncode != 0
    assert "ModuleNotFoundError" in blocked.stderr


@pytest.mark.parametrize("name", wagle_trainer.__all__)
def test_every_public_name_resolves(name):
    assert getattr(wagle_trainer, name) is not None
    assert name in dir(wagle_trainer)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'WagleTrainor'"):
        _ = wagle_trainer.WagleTrainor
