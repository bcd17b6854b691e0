"""Arguments and tasks of the recipes."""

import pytest
from recipe import variants
from tasks import RecipeArguments, task_class
from trl import ModelConfig

from wagle_trainer import WagleConfig


@pytest.mark.parametrize(("given", "limit"), [("all", None), (None, None), ("7", 7), (7, 7)])
def test_rows_of_the_evaluation_sets(given, limit):
    assert task_class("tofu")(RecipeArguments(evaluation_samples=given)).limit == limit


def test_rows_of_the_evaluation_sets_by_default():
    assert task_class("tofu")(RecipeArguments()).limit == 20


@pytest.mark.parametrize("given", [0, "0", -1, "few", 1.5])
def test_no_number_of_rows(given):
    with pytest.raises(ValueError, match="at least 1, or 'all'"):
        RecipeArguments(evaluation_samples=given)


def test_unknown_task():
    with pytest.raises(ValueError, match="Unknown task 'tofoo'. Known: .*tofu"):
        task_class("tofoo")


def test_files_of_ones_own_have_no_questions():
    task = task_class("tofu")(RecipeArguments(forget_file="f.jsonl", retain_file="r.jsonl"))
    with pytest.raises(ValueError, match="wagle evaluate"):
        task.evaluation_sets(None, None)


def labels(controls, **settings):
    task = task_class("tofu")(RecipeArguments(controls=controls))
    args = WagleConfig(output_dir="out", use_cpu=True, **settings)
    return {label: (args, peft) for label, args, peft in variants(task, args, ModelConfig())}


def test_controls_of_the_paper():
    found = labels(["paper"], density=0.1)
    masks = [f"after, {score} mask 0.1" for score in ("wagle", "random", "magnitude", "wanda")]
    assert set(found) == {*masks, "after, no mask", "after, LoRA"}
    assert found["after, LoRA"][1].r == 8
    assert found["after, LoRA"][0].attribution is None
    assert {peft for label, (_, peft) in found.items() if label != "after, LoRA"} == {None}
    assert found["after, wanda mask 0.1"][0].attribution_scope == "row"
    assert found["after, random mask 0.1"][0].attribution_scope == "global"
    assert len({args.output_dir for args, _ in found.values()}) == len(found)


def test_controls_by_other_names():
    assert list(labels(["dense", "none", "wagle"])) == ["after, wagle mask 0.8", "after, no mask"]
    assert list(labels(["random"], attribution=None)) == ["after, no mask", "after, random mask 0.8"]


def test_controls_that_cannot_be():
    with pytest.raises(ValueError, match="Unknown attribution score 'wangle'"):
        labels(["wangle"])
    with pytest.raises(ValueError, match="differs from score to score"):
        labels(["random"], density="auto")
    assert list(labels(["none", "lora"], density="auto")) == [
        "after, wagle mask auto",
        "after, no mask",
        "after, LoRA",
    ]
