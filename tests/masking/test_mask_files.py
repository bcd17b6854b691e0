"""Damaged mask files: loaded right or refused by an error that names the file, and never with much memory."""

import json
import random
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from wagle_trainer import WeightMask
from wagle_trainer.masking import MaskInfo, MaskMismatchError
from wagle_trainer.masking.mask_files import CONFIG_NAME, WEIGHTS_NAME

SHAPES = {"model.layers.0.q_proj.weight": (24, 17), "model.layers.1.v_proj.bias": (11,), "embed.weight": (57, 8)}


@pytest.fixture(scope="module")
def mask():
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in SHAPES.items()}
    return WeightMask.from_dict(masks, MaskInfo(score="wagle", gamma=1e-6, base_model="some/model", density_rule=None))


def is_right(loaded: WeightMask, mask: WeightMask) -> bool:
    return loaded == mask and loaded.info == mask.info and all(torch.equal(loaded[n], mask[n]) for n in mask)


@pytest.mark.parametrize("damaged", [WEIGHTS_NAME, CONFIG_NAME])
def test_five_hundred_accidents_to_each_file(damaged, mask, tmp_path, damage):
    mask.save_pretrained(tmp_path)
    content, draw = (tmp_path / damaged).read_bytes(), random.Random(0)
    refused = 0
    for _ in range(500):
        (tmp_path / damaged).write_bytes(damage(content, draw))
        loaded, error = None, ""
        try:
            loaded = WeightMask.from_pretrained(tmp_path)
        except (ValueError, FileNotFoundError) as refusal:  # the second if "bits_in" came about
            error = str(refusal)
        assert is_right(loaded, mask) if loaded is not None else str(tmp_path) in error
        assert len(error) < 1000 + len(str(tmp_path))
        refused += loaded is None
    assert refused > 400


def test_the_configuration_has_a_digest(mask, tmp_path):
    mask.save_pretrained(tmp_path)
    file = tmp_path / CONFIG_NAME
    config = json.loads(file.read_text())
    for change in ({"gamma": 1.0}, {"base_model": "another/model"}, {"density": 0.1}, {"new": None}):
        file.write_text(json.dumps(config | change))
        with pytest.raises(MaskMismatchError, match=r"mask_config\.json does not belong to its content"):
            WeightMask.from_pretrained(tmp_path)
    del config["config_digest"]  # files of earlier versions have none
    file.write_text(json.dumps(config))
    assert is_right(WeightMask.from_pretrained(tmp_path), mask)


@pytest.mark.parametrize(
    "change",
    [lambda bits: bits.to(torch.int16), lambda bits: bits.view(torch.int8), lambda bits: bits[None], lambda b: b[1:]],
)
def test_bits_of_another_format_or_shape_are_refused(change, mask, tmp_path):
    mask.save_pretrained(tmp_path)
    packed = load_file(tmp_path / WEIGHTS_NAME)
    packed["embed.weight"] = change(packed["embed.weight"]).contiguous()
    save_file(packed, tmp_path / WEIGHTS_NAME)
    with pytest.raises(MaskMismatchError, match=r"mask\.safetensors has a tensor of format .* for 'embed\.weight'"):
        WeightMask.from_pretrained(tmp_path)


def forge(mask, folder, **packed):
    """Files whose digests fit, with other bits."""
    forged = WeightMask({name: mask.packed(name) for name in mask} | packed, SHAPES)
    forged.save_pretrained(folder)


def test_bits_behind_the_last_weight_are_refused(mask, tmp_path):
    packed = mask.packed("model.layers.1.v_proj.bias").clone()
    packed[-1] |= 128  # position 15 of 11
    forge(mask, tmp_path, **{"model.layers.1.v_proj.bias": packed})
    with pytest.raises(MaskMismatchError, match="behind its last one"):
        WeightMask.from_pretrained(tmp_path)


def of_adapter(folder, shape, positions):
    """A mask whose bits lie in an adapter's file, as flat positions."""
    folder.mkdir(exist_ok=True)
    config = {"format_version": 1, "digest": "0" * 64, "shapes": {"w": shape}, "bits_in": "adapter_model.safetensors"}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    save_file({"base_model.model.w.positions": positions}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("positions", [[3, 3], [5, 2], [-1, 4], [4, 12]])
def test_positions_that_no_adapter_has_are_refused(positions, tmp_path):
    of_adapter(tmp_path, [3, 4], torch.tensor(positions, dtype=torch.int32))
    with pytest.raises(MaskMismatchError, match=r"adapter_model\.safetensors has positions of 'w' outside"):
        WeightMask.from_pretrained(tmp_path)


@pytest.mark.parametrize("depth", [5_000, 200_000])
def test_deeply_nested_configurations_are_refused(depth, tmp_path):
    (tmp_path / CONFIG_NAME).write_text('{"format_version": 1, "shapes": ' + "[" * depth)
    with pytest.raises(ValueError, match=r"mask_config\.json is not a readable mask configuration"):
        WeightMask.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [[-3, 4], [3.0, 4], "12", [True, 12], [10**15]])
def test_impossible_shapes_are_refused(shape, mask, tmp_path):
    mask.save_pretrained(tmp_path)
    file = tmp_path / CONFIG_NAME
    config = json.loads(file.read_text())
    del config["config_digest"]
    config["shapes"]["embed.weight"] = shape
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(f"{file} is not a readable mask configuration")):
        WeightMask.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bits", "positions"])
def test_few_bytes_that_claim_billions_of_weights_take_little_memory(kind, mask, tmp_path):
    if kind == "positions":
        of_adapter(tmp_path, [3_000_000, 1000], torch.tensor([0, 2_000_000_000], dtype=torch.int32))
    else:
        mask.save_pretrained(tmp_path)
        config = json.loads((tmp_path / CONFIG_NAME).read_text())
        del config["config_digest"]
        config["shapes"]["embed.weight"] = [3_000_000, 1000]
        (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    script = """if True:
        import resource, sys
        from wagle_trainer import WeightMask
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            WeightMask.from_pretrained(sys.argv[1])
        except ValueError as error:
            print(error)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    *error, mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert ("altered or replaced" in error[0]) == (kind == "bits") or "digest" in error[0]
    assert float(mib) < 40
