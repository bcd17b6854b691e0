"""What `push_to_hub` uploads, as far as that can be seen without a Hub."""

import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from wagle_trainer import WeightMask
from wagle_trainer.adapters import AdapterInfo, SparseAdapter, compose, diff
from wagle_trainer.masking import MaskInfo

EVALUATION = {"before": {"forget_prob": 0.98765, "per_example": {}}, "after": {"forget_prob": 0.1, "utility": 0.5}}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The folder that takes the place of the Hub; `hub.asked` has what the repositories were made with."""

    class Api:
        def __init__(self, token=None):
            asked["token"] = token

        def create_repo(self, repo_id, **options):
            asked.update(options)
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub", dirs_exist_ok=True)
            return f"https://hub/{repo_id}: {commit_message}"

    asked = {}
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return SimpleNamespace(folder=tmp_path / "hub", asked=asked)


@pytest.fixture
def mask(make_net, change):
    _, masks = change(make_net(), 0.1, 0)
    return WeightMask.from_dict(masks, MaskInfo(score="wagle", gamma=1e-6, scope="global", forget_examples=7))


def test_adapter(hub, mask, make_net, change):
    base = make_net()
    training = {"objective": "npo", "sets": {"forget": {"examples": 7, "digest": "f00d"}}}
    made = diff(base, change(base, 0.1, 0)[0])
    adapter = SparseAdapter(made, made.base_digests, AdapterInfo("some/model", None, mask.describe(), training))
    address = adapter.push_to_hub("forgotten", evaluation=EVALUATION, private=True, token="secret")
    assert address == "https://hub/me/forgotten: Upload unlearning adapter"
    assert hub.asked == {"token": "secret", "private": True, "exist_ok": True}
    assert SparseAdapter.from_pretrained(hub.folder, model=base) == adapter
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.base_model == "some/model" and card.data.library_name == "peft"
    assert set(card.data.tags) == {"wagle", "unlearning"}
    for expected in (
        "| method | WAGLE |",
        "| attribution score | wagle |",
        "| gamma | 1e-06 |",
        f"| density | {mask.density:.4g} ({mask.num_selected:,} of {mask.num_weights:,} weights) |",
        "| objective | npo |",
        "| forget set | 7 examples, digest `f00d` |",
        f"| base model digest (SHA-256, tensors touched) | {adapter.base_digest} |",
        adapter.digest,
        mask.digest,
        "| forget_prob | 0.9877 | 0.1 |",
        "| utility | - | 0.5 |",
        'PeftModel.from_pretrained(base, "me/forgotten")',
        "model.unload()",
    ):
        assert expected in card.text, expected
    assert "per_example" not in card.text
    assert len(list(hub.folder.iterdir())) == 3


def test_mask(hub, mask):
    assert mask.push_to_hub("weights", evaluation=EVALUATION).endswith("Upload weight mask")
    assert WeightMask.from_pretrained(hub.folder) == mask
    text = (hub.folder / "README.md").read_text()
    for expected in ("| gamma | 1e-06 |", "| forget set | 7 examples |", mask.digest, "0.9877", 'mask="me/weights"'):
        assert expected in text, expected


@pytest.mark.parametrize("name", ["/home/somebody/model", "./model", "models/of/mine", "here/model"])
def test_composed_adapter_of_a_base_in_a_folder(name, hub, make_net, change, tmp_path, monkeypatch):
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    base = make_net()
    parts = [diff(base, change(base, 0.1, seed)[0]) for seed in (0, 1)]
    parts = [SparseAdapter(p, p.base_digests, AdapterInfo(name)) for p in parts]
    compose(parts, "last").push_to_hub("all")
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.base_model is None  # the Hub refuses paths
    assert parts[0].digest[:12] in card.text and "| overlaps | last |" in card.text and "| method |" not in card.text
