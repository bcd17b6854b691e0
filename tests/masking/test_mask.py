"""`WeightMask` against Python sets of (name, position), in memory and on disk."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from wagle_trainer import WeightMask
from wagle_trainer.masking import MaskInfo, MaskMismatchError

NAMES = ["model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight", "model.layers.1.v_proj.bias", "embed.weight"]


@st.composite
def pairs_of_masks(draw):
    shapes = draw(st.lists(hnp.array_shapes(max_dims=3, max_side=6), min_size=1, max_size=len(NAMES)))
    return tuple(
        {name: torch.from_numpy(draw(hnp.arrays(np.bool_, shape))) for name, shape in zip(NAMES, shapes, strict=False)}
        for _ in range(2)
    )


def as_set(masks):
    return {(name, i) for name, mask in masks.items() for i in mask.flatten().nonzero().flatten().tolist()}


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5, 7), (11,), (50, 9)]
    masks = {n: torch.rand(shape, generator=generator) < 0.4 for n, shape in zip(NAMES, shapes, strict=True)}
    return WeightMask.from_dict(masks, MaskInfo(score="wagle", gamma=1e-6, base_model="some/model", forget_examples=3))


@settings(max_examples=80, deadline=None)
@given(pair=pairs_of_masks())
def test_algebra_is_that_of_sets(pair):
    a, b = (WeightMask.from_dict(masks) for masks in pair)
    sets = [as_set(masks) for masks in pair]
    everything = as_set({name: torch.ones_like(mask) for name, mask in pair[0].items()})
    assert as_set(a & b) == sets[0] & sets[1]
    assert as_set(a | b) == sets[0] | sets[1]
    assert as_set(~a) == everything - sets[0]
    assert ~~a == a
    assert (a == b) == (sets[0] == sets[1])
    assert (a.digest == b.digest) == (sets[0] == sets[1])
    union = sets[0] | sets[1]
    assert a.overlap(b) == (len(sets[0] & sets[1]) / len(union) if union else 1.0)
    assert a.num_selected == len(sets[0])
    assert a.num_weights == len(everything)
    assert a.density == len(sets[0]) / len(everything)


@settings(max_examples=80, deadline=None)
@given(pair=pairs_of_masks())
def test_is_a_mapping_that_gives_back_what_went_in(pair):
    mask = WeightMask.from_dict(pair[0])
    assert list(mask) == list(pair[0])
    assert len(mask) == len(pair[0])
    for name, tensor in pair[0].items():
        assert name in mask
        assert torch.equal(mask[name], tensor)
        assert mask.num_selected_in(name) == int(tensor.sum())
    assert mask.nbytes <= mask.num_weights / 8 + len(mask)


def test_unknown_parameter(mask):
    assert "head.weight" not in mask
    assert mask.get("head.weight") is None
    with pytest.raises(KeyError, match=r"no parameter 'head\.weight'; it has 'model\.layers\.0\.q_proj\.weight'"):
        _ = mask["head.weight"]


def test_what_is_got_is_a_copy(mask):
    digest = mask.digest
    mask["embed.weight"][:] = True
    assert mask.digest == digest


def test_only_bool_tensors():
    with pytest.raises(TypeError, match=r"'weight' must be a bool tensor, got torch\.float32"):
        WeightMask.from_dict({"weight": torch.ones(3)})


def test_digest_depends_on_content_alone(mask):
    turned = WeightMask.from_dict({name: mask[name] for name in reversed(list(mask))})
    assert turned.digest == mask.digest
    assert turned == mask
    assert hash(turned) == hash(mask)
    masks = {name: mask[name].clone() for name in mask}
    digests = {mask.digest}
    masks["embed.weight"][-1, -1] ^= True
    digests.add(WeightMask.from_dict(masks).digest)
    masks["embed.weight"][-1, -1] ^= True
    digests.add(WeightMask.from_dict({**masks, "embed.weight": masks["embed.weight"].view(9, 50)}).digest)
    masks["embed.bias"] = masks.pop("embed.weight")
    digests.add(WeightMask.from_dict(masks).digest)
    assert len(digests) == 4
    assert mask != "no mask"


def test_masks_of_different_models_do_not_combine(mask):
    other = WeightMask.from_dict({**{n: mask[n] for n in NAMES[:3]}, "embed.weight": torch.ones(2, 2).bool()})
    for combine in (mask.__and__, mask.__or__, mask.overlap):
        with pytest.raises(MaskMismatchError, match=r"'embed\.weight' has shape \(50, 9\) .* \(2, 2\)"):
            combine(other)


def test_summary(mask):
    summary = mask.summary()

    def entry(*names):
        chosen = torch.cat([mask[name].flatten() for name in names])
        return {"selected": int(chosen.sum()), "total": len(chosen), "density": pytest.approx(chosen.float().mean())}

    assert summary["tensor"] == {name: entry(name) for name in NAMES}
    assert summary["module"] == {"q_proj": entry(*NAMES[:2]), "v_proj": entry(NAMES[2]), "embed": entry(NAMES[3])}
    assert summary["layer"] == {"0": entry(NAMES[0]), "1": entry(*NAMES[1:3]), "outside layers": entry(NAMES[3])}


# On disk


@settings(max_examples=15, deadline=None)
@given(pair=pairs_of_masks())
def test_save_and_load(tmp_path_factory, pair):
    folder = tmp_path_factory.mktemp("mask")
    info = MaskInfo(score="random", requested_density=0.3, scope="row", seed=7, effective_density=0.25)
    mask = WeightMask.from_dict(pair[0], info)
    mask.save_pretrained(folder)
    loaded = WeightMask.from_pretrained(folder)
    assert loaded == mask
    assert list(loaded) == list(mask)
    assert all(torch.equal(loaded[name], mask[name]) for name in mask)
    assert loaded.info == info


def test_files(mask, tmp_path):
    folder = tmp_path / "not" / "yet"
    mask.save_pretrained(str(folder))
    mask.save_pretrained(folder)  # again: replaces
    assert sorted(path.name for path in folder.iterdir()) == ["mask.safetensors", "mask_config.json"]
    weights = (folder / "mask.safetensors").read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")  # safetensors: length of the JSON, JSON, data
    assert len(weights) - header == mask.nbytes <= mask.num_weights / 8 + len(mask)
    assert set(json.loads(weights[8:header])) - {"__metadata__"} == set(NAMES)
    config = json.loads((folder / "mask_config.json").read_text())
    assert config["format_version"] == 1
    assert config["digest"] == mask.digest
    assert config["shapes"] == {name: list(mask[name].shape) for name in NAMES}
    assert (config["score"], config["gamma"], config["base_model"]) == ("wagle", 1e-6, "some/model")
    assert (config["density"], config["num_selected"]) == (mask.density, mask.num_selected)


def test_nothing_is_pickled(mask, tmp_path, monkeypatch):
    import pickle

    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    mask.save_pretrained(tmp_path)
    assert WeightMask.from_pretrained(tmp_path) == mask


def test_every_altered_byte_is_noticed(mask, tmp_path):
    mask.save_pretrained(tmp_path)
    file = tmp_path / "mask.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in range(start, len(content)):
        file.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        with pytest.raises(MaskMismatchError, match="altered or replaced"):
            WeightMask.from_pretrained(tmp_path)


def test_altered_shapes_are_noticed(mask, tmp_path):
    mask.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "mask_config.json").read_text())
    for shape in ([9, 50], [450], [40, 9]):
        changed = {**config, "shapes": {**config["shapes"], "embed.weight": shape}}
        (tmp_path / "mask_config.json").write_text(json.dumps(changed))
        with pytest.raises(MaskMismatchError):
            WeightMask.from_pretrained(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights(mask, tmp_path, kept):
    mask.save_pretrained(tmp_path)
    file = tmp_path / "mask.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"mask\.safetensors is truncated or not a safetensors file"):
        WeightMask.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format_version": 1}', "\x00\x01"])
def test_broken_configuration(mask, tmp_path, content):
    mask.save_pretrained(tmp_path)
    (tmp_path / "mask_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"mask_config\.json is not a readable mask configuration"):
        WeightMask.from_pretrained(tmp_path)


@pytest.mark.parametrize("place", ["../mask.safetensors", "/etc/passwd", 5])
def test_positions_in_another_folder(mask, tmp_path, place):
    mask.save_pretrained(tmp_path)
    file = tmp_path / "mask_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bits_in": place}))
    with pytest.raises(ValueError, match=r"mask_config\.json is not a readable mask configuration"):
        WeightMask.from_pretrained(tmp_path)


def test_unknown_format_version(mask, tmp_path):
    mask.save_pretrained(tmp_path)
    file = tmp_path / "mask_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    with pytest.raises(ValueError, match="format version 99; this wagle_trainer reads 1"):
        WeightMask.from_pretrained(tmp_path)


def test_files_of_two_masks(mask, tmp_path):
    mask.save_pretrained(tmp_path / "a")
    (~mask).save_pretrained(tmp_path / "b")
    WeightMask.from_dict({"other": torch.ones(3).bool()}).save_pretrained(tmp_path / "c")
    for other, message in (("b", "altered or replaced"), ("c", "name different parameters")):
        (tmp_path / "a" / "mask.safetensors").write_bytes((tmp_path / other / "mask.safetensors").read_bytes())
        with pytest.raises(MaskMismatchError, match=message):
            WeightMask.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("name", ["mask.safetensors", "mask_config.json"])
def test_missing_files(mask, tmp_path, name):
    mask.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"holds no {name}")):
        WeightMask.from_pretrained(tmp_path)


@pytest.mark.parametrize("where", ["no/folder", "no/folder/at/all", "no folder"])
def test_neither_folder_nor_repository(where):
    with pytest.raises(FileNotFoundError, match=f"'{where}' is neither a folder"):
        WeightMask.from_pretrained(where)


def test_a_failed_write_leaves_the_old_file(mask, tmp_path, monkeypatch):
    mask.save_pretrained(tmp_path)

    def full_disk(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        (~mask).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert WeightMask.from_pretrained(tmp_path) == mask
    assert len(list(tmp_path.iterdir())) == 2  # and nothing beside them


# For which model


def test_check_against_a_model(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    mask = WeightMask.from_dict({n: p > 0 for n, p in model.named_parameters()}, MaskInfo(base_model="mine"))
    mask.check(model)
    WeightMask.from_dict({"1.weight": mask["1.weight"]}).check(model)  # the others are frozen
    mask.save_pretrained(tmp_path)
    assert WeightMask.from_pretrained(tmp_path, model=model) == mask
    wider = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6))
    with pytest.raises(MaskMismatchError, match=r"'mine'.*'1\.weight' has shape \(5, 4\) in the mask and \(6, 4\) in"):
        WeightMask.from_pretrained(tmp_path, model=wider)
    with pytest.raises(MaskMismatchError, match=r"'1\.weight' is not in the model; '1\.bias' is not in the model\."):
        mask.check(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(MaskMismatchError, match=r"'0\.weight'.*'0\.bias'.*'1\.weight'.*, and 1 more"):
        mask.check(nn.ReLU())


def test_weights_are_counted_once(monkeypatch):
    """A trainer logs the density at every logging step."""
    mask = WeightMask.from_dict({"a": torch.tensor([True, False, True])})
    assert mask.density == pytest.approx(2 / 3)
    monkeypatch.setattr("wagle_trainer.masking.bits.count", None)
    assert mask.density == pytest.approx(2 / 3)
