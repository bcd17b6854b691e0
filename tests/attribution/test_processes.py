"""Every score on two processes (gloo, on the CPU) and on one: whole models with shares of the data, and FSDP2."""

import json
from pathlib import Path

import pytest
import torch

from wagle_trainer import WeightMask, attribute
from wagle_trainer.attribution import get_score, list_scores

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("scores_script.py")
SCORES = [name for name in list_scores() if get_score(name).__module__.startswith("wagle_trainer.")]
OPTIONS = {"module": {"score_kwargs": {"patterns": ["o_proj"]}}, "wagle": {"gamma": 0.05}, "sure": {"scope": "tensor"}}
CASES = {
    **{name: {"score": name, "density": 0.3} | OPTIONS.get(name, {}) for name in SCORES},
    "wagle with gamma balanced": {"score": "wagle", "gamma": "balanced", "density": 0.3},
    "wagle with gamma auto": {"score": "wagle", "gamma": "auto", "density": 0.3, "scope": "row"},
    "grad_ratio with density auto": {"score": "grad_ratio", "density": "auto"},
    "frp without an earlier mask": {"score": "frp", "density": 0.3, "exclude": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_llama, make_examples, pad_batches, run_script):
    """Masks by two processes in ddp/ and fsdp2/, by one in one/."""
    folder = tmp_path_factory.mktemp("processes")
    model = make_llama(tie_word_embeddings=False)
    model.save_pretrained(folder / "model")
    sets = [pad_batches(make_examples(number, seed=number), 2) for number in (9, 7)]  # shares of unequal size
    rows = [[{key: tensor.tolist() for key, tensor in batch.items()} for batch in batches] for batches in sets]
    (folder / "sets.json").write_text(json.dumps(rows))
    (folder / "cases.json").write_text(json.dumps(CASES))
    earlier = attribute(model, None, None, score="random", density=0.2, progress=False)
    earlier.save_pretrained(folder / "earlier")
    run_script(SCRIPT, folder, processes=2)
    for name, arguments in CASES.items():
        options = {key: value for key, value in arguments.items() if key != "exclude"}
        exclude_mask = earlier if "exclude" in arguments else None
        mask = attribute(model, *sets, **options, exclude_mask=exclude_mask, progress=False)
        mask.save_pretrained(folder / "one" / name)
    return folder


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_select_what_one_does(folder, case, engine):
    one, two = (WeightMask.from_pretrained(folder / where / case) for where in ("one", engine))
    assert two.num_weights == one.num_weights
    assert two.num_selected == one.num_selected
    assert (one | two).num_selected - (one & two).num_selected <= 1e-4 * one.num_weights
    assert two.info.requested_density == one.info.requested_density
    assert two.info.exclude_mask == one.info.exclude_mask
    assert (two.info.forget_examples, two.info.retain_examples) == (one.info.forget_examples, one.info.retain_examples)
    assert two.info.gamma == (None if one.info.gamma is None else pytest.approx(one.info.gamma, rel=1e-4))
    if CASES[case].get("exclude"):
        earlier = WeightMask.from_pretrained(folder / "earlier")
        assert not any(bool((two[name] & earlier[name]).any()) for name in two)


def test_the_masks_are_not_all_the_same(folder):
    """Or the test above would prove little."""
    masks = {name: WeightMask.from_pretrained(folder / "one" / name) for name in SCORES}
    assert len({mask.digest for mask in masks.values()}) == len(SCORES)
    assert all(bool(torch.cat([mask[name].flatten() for name in mask]).any()) for mask in masks.values())
