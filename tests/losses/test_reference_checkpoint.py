"""The file of reference values in a checkpoint: whatever happens to it, it is read right or refused."""

import json
import logging
import random
import re

import pytest
import torch
from safetensors.torch import save_file

from wagle_trainer.losses.reference_checkpoint import REFERENCE_NAME, ReferenceFile
from wagle_trainer.utils.keyed_digests import make_folder_key, sealed


@pytest.fixture
def saved():
    generator = torch.Generator().manual_seed(0)
    return ReferenceFile(
        log_probs={"forget": -torch.rand(5, 4, generator=generator)},
        identities={"retain": -torch.rand(3, generator=generator)},
        outputs={
            "retain_logits": {"hidden": torch.rand(3, 2, generator=generator), "head.weight": torch.rand(4, 2)},
            "forget_states": {"rows": torch.arange(2)},
        },
        objective={"dual": torch.rand(2, generator=generator)},
        fingerprints={"forget": "a" * 64, "retain": "b" * 64},
        settings={"loss_type": "npo", "seed": 3},
    )


def same(one: ReferenceFile, other: ReferenceFile) -> bool:
    def tensors(file):
        yield from (file.log_probs, file.identities, file.objective)
        yield from (file.outputs[name] for name in sorted(file.outputs))

    return (one.fingerprints, one.settings, one.outputs.keys()) == (
        other.fingerprints,
        other.settings,
        other.outputs.keys(),
    ) and all(
        mine.keys() == yours.keys() and all(torch.equal(mine[key], value) for key, value in yours.items())
        for mine, yours in zip(tensors(one), tensors(other), strict=True)
    )


def test_five_hundred_accidents(saved, damage, tmp_path):
    saved.save(tmp_path)
    assert same(ReferenceFile.load(tmp_path), saved)
    path, draw, refused = tmp_path / REFERENCE_NAME, random.Random(0), 0
    content = path.read_bytes()
    for _ in range(500):
        path.write_bytes(damage(content, draw))
        loaded, error = None, ""
        try:
            loaded = ReferenceFile.load(tmp_path)
        except ValueError as refusal:
            error = str(refusal)
        assert same(loaded, saved) if loaded is not None else (str(path) in error and "another checkpoint" in error)
        refused += loaded is None
    assert refused > 450


@pytest.mark.parametrize("settings", ["{", "[" * 100_000])
def test_old_files_have_no_digest_of_their_settings(settings, tmp_path):
    save_file({"forget": torch.ones(2, 3)}, tmp_path / REFERENCE_NAME, {"settings": settings})
    with pytest.raises(ValueError, match=re.escape(REFERENCE_NAME) + " cannot be read"):
        ReferenceFile.load(tmp_path)
    save_file({"forget": torch.ones(2, 3)}, tmp_path / REFERENCE_NAME, {"settings": json.dumps({"seed": 3})})
    assert ReferenceFile.load(tmp_path).settings == {"seed": 3}


def test_data_are_compared_by_whoever_has_the_key(tmp_path, caplog):
    key = make_folder_key(tmp_path)
    file = ReferenceFile(fingerprints={"forget": sealed("the set", key)})
    file.check_data({"forget": "the set"}, "checkpoint-1", [key])
    with pytest.raises(ValueError, match="The forget set is not the one that the checkpoint in checkpoint-1"):
        file.check_data({"forget": "another set"}, "checkpoint-1", [key])
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        file.check_data({"forget": "another set"}, "checkpoint-1", [])
    assert "is not known: its digest is under another key" in caplog.text
