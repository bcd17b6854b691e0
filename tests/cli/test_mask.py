"""`wagle mask` does what the operators do."""

import json

import pytest
import torch

from wagle_trainer import WeightMask
from wagle_trainer.masking import MaskInfo
from wagle_trainer.utils.percent import percent


@pytest.fixture
def saved(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name in "ab":
        drawn = {"q_proj.weight": torch.rand(5, 7, generator=generator) < 0.5, "norm": torch.ones(3).bool()}
        masks[name] = WeightMask.from_dict(drawn, MaskInfo(score="wagle", gamma=1e-6))
        masks[name].save_pretrained(tmp_path / name)
    return masks["a"], masks["b"], str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out")


@pytest.mark.parametrize("command", ["and", "or", "minus", "not"])
def test_operators(saved, wagle, command):
    a, b, path_a, path_b, out = saved
    code, printed, _ = wagle("mask", command, path_a, *([path_b] if command != "not" else []), out, "--json")
    expected = {"and": a & b, "or": a | b, "minus": a & ~b, "not": ~a}[command]
    assert code == 0
    assert WeightMask.from_pretrained(out) == expected
    assert a - b == a & ~b
    assert json.loads(printed)["digest"] == expected.digest


def test_overlap(saved, wagle):
    a, b, path_a, path_b, _ = saved
    result = json.loads(wagle("mask", "overlap", path_a, path_b, "--json")[1])
    assert result["overlap"] == a.overlap(b)
    assert result["selected by both"] == sum(int((a[name] & b[name]).sum()) for name in a)


def test_overlap_by_chance_is_that_of_independent_masks(wagle, tmp_path):
    generator = torch.Generator().manual_seed(1)
    for name, density in (("a", 0.2), ("b", 0.5)):
        drawn = {"w": torch.rand(100_000, generator=generator) < density}
        WeightMask.from_dict(drawn).save_pretrained(tmp_path / name)
    result = json.loads(wagle("mask", "overlap", tmp_path / "a", tmp_path / "b", "--json")[1])
    assert result["overlap by chance"] == pytest.approx(0.2 * 0.5 / (0.2 + 0.5 - 0.2 * 0.5), rel=0.02)
    assert result["overlap"] == pytest.approx(result["overlap by chance"], rel=0.03)


def test_info(saved, wagle):
    a, _, path_a, _, _ = saved
    info = json.loads(wagle("mask", "info", path_a, "--json")[1])
    assert (info["score"], info["num_selected"], info["digest"]) == ("wagle", a.num_selected, a.digest)
    assert info["summary"]["module"]["q_proj"]["total"] == 35
    lines = wagle("mask", "info", path_a)[1].splitlines()
    assert f"num_selected: {a.num_selected}" in lines
    selected = int(a["q_proj.weight"].sum())
    assert ["q_proj", str(selected), "of", "35", percent(selected / 35)] in [line.split() for line in lines]


def test_errors_are_one_line(saved, wagle, tmp_path):
    _a, _, path_a, _, out = saved
    WeightMask.from_dict({"other": torch.ones(2).bool()}).save_pretrained(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    for arguments in (["info", tmp_path / "empty"], ["and", path_a, tmp_path / "c", out]):
        code, printed, message = wagle("mask", *arguments)
        assert (code, printed) == (1, "")
        assert message.startswith("wagle mask: ")
        assert message.count("\n") == 1
