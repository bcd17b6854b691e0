"""`wagle adapter` does what the functions of `wagle_trainer.adapters` do."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer.adapters import SparseAdapter, compose, diff


@pytest.fixture(scope="module")
def tuned(files, tmp_path_factory):
    """Two models that differ from `files.model` in a few weights each, one of them in common."""
    paths = []
    for name, start in (("first", 0), ("second", 9)):
        model = AutoModelForCausalLM.from_pretrained(files.model)
        with torch.no_grad():
            model.lm_head.weight[0, start : start + 10] += 0.5
        path = tmp_path_factory.mktemp("tuned") / name
        model.save_pretrained(path)
        paths.append(str(path))
    return paths


def same(path, other):
    a, b = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (path, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_diff_verify_merge(files, tuned, wagle, tmp_path):
    adapter = tmp_path / "adapter"
    code, out, _ = wagle("adapter", "diff", files.model, tuned[0], adapter, "--json")
    assert code == 0
    assert json.loads(out)["digest"] == diff(files.model, tuned[0]).digest
    code, out, _ = wagle("adapter", "info", adapter)
    assert code == 0
    assert "num_values: 10" in out.splitlines()
    assert wagle("adapter", "verify", adapter)[0] == 0
    code, out, _ = wagle("adapter", "verify", adapter, "--base", files.model)
    assert (code, out.splitlines()[:2]) == (0, ["valid: True", "base_checked: True"])
    code, out, _ = wagle("adapter", "verify", adapter, "--base", files.other)
    assert (code, out.splitlines()[0]) == (1, "valid: False")
    assert "\nproblem: " in out

    assert wagle("adapter", "merge", files.model, adapter, tmp_path / "merged")[0] == 0
    assert same(tmp_path / "merged", tuned[0])
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "<eos>"
    code, out, err = wagle("adapter", "merge", files.other, adapter, tmp_path / "wrong")
    assert (code, out) == (1, "")
    assert err.startswith("wagle adapter: ")
    assert not (tmp_path / "wrong").exists()


def test_compose(files, tuned, wagle, tmp_path):
    paths = [str(tmp_path / name) for name in "ab"]
    for path, model in zip(paths, tuned, strict=True):
        diff(files.model, model).save_pretrained(path)
    code, _, err = wagle("adapter", "compose", *paths, tmp_path / "both")
    assert code == 1
    assert "more than one adapter" in err
    for rule, base in (("last", None), ("sum", files.model)):
        arguments = ["--combine", rule, *(["--base", base] if base else [])]
        assert wagle("adapter", "compose", *paths, tmp_path / rule, *arguments)[0] == 0
        expected = compose(paths, rule, None if base is None else AutoModelForCausalLM.from_pretrained(base))
        assert SparseAdapter.from_pretrained(tmp_path / rule) == expected
