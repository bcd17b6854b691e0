"""WMDP's suite on small tasks of the harness's own format, without a network; most tests need the extra `harness`."""

import importlib.util

import pytest
import torch

from wagle_trainer.evaluation import HarnessTasks, evaluate_wmdp, get_suite, load_results, save_results
from wagle_trainer.reporting import example_interval

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason='the lm-evaluation-harness is not installed: pip install -e ".[harness]"',
)


@pytest.fixture
def questions(tmp_path, write_harness_tasks):
    """Three tasks' questions; the tasks are in `tmp_path`."""
    return write_harness_tasks(tmp_path)


@pytest.fixture
def tasks(tmp_path, questions):
    return get_suite("wmdp").load(str(tmp_path), forget=["forget_bio", "forget_cyber"], retain=["retain_all"])


def plain(model, words, rows) -> list[float]:
    """1 where the likeliest of the choices after the question is the answer."""
    right = []
    for row in rows:
        ids = torch.tensor([words(row["question"])["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        right.append(float(logits[words.convert_tokens_to_ids(row["choices"])].argmax() == row["answer"]))
    return right


@needs_harness
def test_accuracy_on_local_tasks(muse_model, word_tokenizer, tasks, questions, tmp_path):
    suite = get_suite("wmdp")
    word_tokenizer.pad_token = None
    muse_model.train()
    try:
        found = suite.evaluate(muse_model, word_tokenizer, tasks, batch_size=2, progress=False)
        assert muse_model.training
        assert word_tokenizer.pad_token is None  # the harness pads with a token of its own choice, in a copy
    finally:
        muse_model.eval()
    right = {name: plain(muse_model, word_tokenizer, rows) for name, rows in questions.items()}
    means = {name: sum(values) / len(values) for name, values in right.items()}
    assert 0 < sum(means.values()) < 3, means  # else the comparison would say little
    assert {name: values["acc"] for name, values in found["per_example"].items()} == right
    assert {name: found[f"{name}_acc"] for name in questions} == pytest.approx(means)
    assert found["forget_accuracy"] == pytest.approx((means["forget_bio"] + means["forget_cyber"]) / 2)
    assert found["retain_accuracy"] == pytest.approx(means["retain_all"])
    for metric in {*suite.forget_metrics, *suite.utility_metrics}:
        assert isinstance(found[metric], float), metric
    assert found["settings"]["examples"] == {name: len(rows) for name, rows in questions.items()}
    save_results(found, tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == found


@needs_harness
def test_limit_and_batch_size(muse_model, word_tokenizer, tasks, questions):
    found = evaluate_wmdp(muse_model, word_tokenizer, tasks, limit=2, batch_size=64, progress=False)
    expected = {name: plain(muse_model, word_tokenizer, rows[:2]) for name, rows in questions.items()}
    assert {name: values["acc"] for name, values in found["per_example"].items()} == expected


@needs_harness
def test_data_of_a_task_that_are_missing(muse_model, word_tokenizer, tasks, tmp_path):
    (tmp_path / "forget_cyber.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="data of the task 'forget_cyber' cannot be loaded"):
        evaluate_wmdp(muse_model, word_tokenizer, tasks, progress=False)


@needs_harness
def test_a_task_without_accuracy(tasks, tmp_path):
    task = tmp_path / "retain_all.yaml"
    task.write_text(task.read_text().replace("metric: acc", "metric: acc_norm"))
    with pytest.raises(ValueError, match=r"'retain_all' has no accuracy \('acc'\); the harness reports acc_norm"):
        evaluate_wmdp(None, None, tasks)


GROUP = """
group: everything
task: [forget_bio, forget_cyber]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""


@needs_harness
def test_a_group_and_few_shot(muse_model, word_tokenizer, tasks, questions, tmp_path):
    (tmp_path / "group.yaml").write_text(GROUP)
    bio = tmp_path / "forget_bio.yaml"
    bio.write_text(f"{bio.read_text()}num_fewshot: 0\n")
    tasks = HarnessTasks(["everything"], ["retain_all"], str(tmp_path))
    found = evaluate_wmdp(muse_model, word_tokenizer, tasks, num_fewshot=0, progress=False)
    right = [plain(muse_model, word_tokenizer, questions[name]) for name in ("forget_bio", "forget_cyber")]
    assert found["everything_acc"] == found["forget_accuracy"] == pytest.approx(sum(map(sum, right)) / 8)
    assert set(found["per_example"]) == {"forget_bio", "forget_cyber", "retain_all"}
    assert found["settings"]["weights"] == {
        "everything": {"forget_bio": 5 / 8, "forget_cyber": 3 / 8},
        "retain_all": {"retain_all": 1.0},
    }
    for metric in ("everything_acc", "forget_accuracy", "retain_accuracy"):  # it is what its examples say
        assert example_interval(found, metric).low is not None
    few = evaluate_wmdp(muse_model, word_tokenizer, tasks, num_fewshot=1, progress=False)
    assert few["settings"]["num_fewshot"] == {"forget_bio": 0, "forget_cyber": 1, "retain_all": 1}
    assert few["per_example"]["forget_bio"] == found["per_example"]["forget_bio"]


@needs_harness
def test_a_group_whose_tasks_count_alike(muse_model, word_tokenizer, tasks, questions, tmp_path):
    (tmp_path / "group.yaml").write_text(GROUP.replace("true", "false"))
    tasks = HarnessTasks(["everything"], ["retain_all"], str(tmp_path))
    found = evaluate_wmdp(muse_model, word_tokenizer, tasks, limit=4, progress=False)
    right = [plain(muse_model, word_tokenizer, questions[name][:4]) for name in ("forget_bio", "forget_cyber")]
    assert found["everything_acc"] == pytest.approx((sum(right[0]) / 4 + sum(right[1]) / 3) / 2)
    assert found["settings"]["weights"]["everything"] == {"forget_bio": 0.5, "forget_cyber": 0.5}
    assert example_interval(found, "forget_accuracy").low is not None


@needs_harness
def test_groups_and_tags_without_a_number(tasks, tmp_path):
    (tmp_path / "group.yaml").write_text("group: everything\ntask: [forget_bio, forget_cyber]\n")
    with pytest.raises(ValueError, match=r"'everything' has no accuracy \('acc'\); the harness reports nothing"):
        evaluate_wmdp(None, None, HarnessTasks(["everything"], ["retain_all"], str(tmp_path)))
    task = tmp_path / "retain_all.yaml"
    task.write_text(f"{task.read_text()}tag: kept\n")
    with pytest.raises(
        ValueError, match="'kept' is a tag, and the harness reports no number for tags: name retain_all"
    ):
        evaluate_wmdp(None, None, HarnessTasks(["forget_bio"], ["kept"], str(tmp_path)))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness_the_extra_is_named(tasks):
    with pytest.raises(ImportError, match=r'pip install "wagle-trainer\[harness\]"'):
        evaluate_wmdp(None, None, tasks)


def test_a_folder_without_tasks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no task files \(\*\.yaml\), or does not exist"):
        get_suite("wmdp").load(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="retain must be a list of tasks with at least one in it"):
        HarnessTasks(retain=[])
    with pytest.raises(ValueError, match="forget must be a list"):
        HarnessTasks(forget="wmdp_bio")


def test_the_hub_is_the_default():
    assert get_suite("wmdp").load() == HarnessTasks(("wmdp_bio", "wmdp_cyber"), ("mmlu",), None)
