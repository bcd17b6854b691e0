"""Evaluations on two processes (gloo) give what one gives, and the same on both."""

import importlib.util
import json
from pathlib import Path

import pytest

from wagle_trainer.data import fictional_tokenizer
from wagle_trainer.evaluation.processes import gather_results, shard_batches

SCRIPT = Path(__file__).with_name("processes_script.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, make_llama, write_harness_tasks, run_script) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    tokenizer = fictional_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    make_llama(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    if importlib.util.find_spec("lm_eval"):
        write_harness_tasks(folder / "tasks")
    run_script(SCRIPT, folder, processes=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def close(shared, alone):
    """Equal structure and texts, numbers within 1e-5."""
    if isinstance(alone, dict):
        assert shared.keys() == alone.keys()
        return all(close(shared[key], alone[key]) for key in alone)
    if isinstance(alone, list):
        return len(shared) == len(alone) and all(map(close, shared, alone))
    return shared == (pytest.approx(alone, abs=1e-5) if isinstance(alone, float) else alone)


@pytest.mark.distributed
def test_scores_and_answers(ranks):
    for rank in ranks:
        assert rank["processes"] == 2
        assert [len(found["texts"]) for found in rank["alone"]] == [3, 1, 0]
        assert close(rank["shared"], rank["alone"])
    assert ranks[0]["shared"] == ranks[1]["shared"]


@pytest.mark.distributed
def test_tofu(ranks):
    for rank in ranks:
        assert rank["tofu_alone"]["mia_gradnorm"] > 0
        assert close(rank["tofu_shared"], rank["tofu_alone"])
    assert ranks[0]["tofu_shared"] == ranks[1]["tofu_shared"]


@pytest.mark.distributed
def test_other_suites(ranks):
    for rank in ranks:
        assert close(rank["suites_shared"], rank["suites_alone"])
    assert ranks[0]["suites_shared"] == ranks[1]["suites_shared"]
    names = {"muse", "copyright", "detoxification", *(["wmdp"] if importlib.util.find_spec("lm_eval") else [])}
    assert set(ranks[0]["suites_shared"]) == names


@pytest.mark.distributed
def test_an_error_of_one_process_reaches_all(ranks):
    assert ranks[0]["broken"] == ranks[1]["broken"]
    assert "the log-probability of the answer is nan" in ranks[0]["broken"]


class Three:
    """A state of three processes, of which this is the last."""

    num_processes, process_index = 3, 2

    def __init__(self, cpu):
        pass


@pytest.mark.parametrize(("batches", "mine"), [(0, []), (1, [0]), (2, [0]), (3, [2]), (4, [2, 1]), (6, [2, 5])])
def test_every_process_gets_as_many_batches(monkeypatch, batches, mine):
    monkeypatch.setattr("wagle_trainer.evaluation.processes.PartialState", Three)
    assert shard_batches(range(batches), across_processes=True) == mine
    assert shard_batches(range(batches), across_processes=False) == list(range(batches))


def test_one_process_has_everything():
    assert shard_batches(["a", "b"], across_processes=True) == ["a", "b"]
    assert gather_results({1: "a", 0: "b"}, across_processes=True) == {1: "a", 0: "b"}
