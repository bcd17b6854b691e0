"""Two processes train compactly what one does, and send compact gradients only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_llama, make_set, make_word_tokenizer, run_script):
    """processes -> (what each process wrote, the weights)."""
    folder = tmp_path_factory.mktemp("compact")
    make_llama().save_pretrained(folder / "model")
    make_word_tokenizer().save_pretrained(folder / "model")
    make_set(16).save_to_disk(str(folder / "forget"))
    make_set(16, seed=1).save_to_disk(str(folder / "retain"))
    done = {}
    for processes in (1, 2):
        output = folder / f"{processes}"
        run_script(Path(__file__).with_name("compact_script.py"), folder, output, processes=processes)
        ranks = [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]
        done[processes] = ranks, load_file(output / "weights.safetensors")
    return done


def test_two_processes_do_what_one_does(runs):
    (one,), weights = runs[1]
    ranks, others = runs[2]
    assert [rank["kinds"] for rank in (one, *ranks)] == [["CompactUpdates"]] * 3
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], rtol=1e-3, atol=1e-4)
    for rank in ranks:
        assert rank["norms"] == pytest.approx(one["norms"], rel=1e-4)


def test_only_compact_gradients_are_sent(runs):
    for rank in runs[2][0]:
        assert rank["buckets"] == []  # DistributedDataParallel reduces nothing
        assert len(rank["sent"]) == 4  # once per step, not per pass
        assert max(rank["sent"]) <= 1.1 * rank["selected"]


def test_a_nan_on_one_process_stops_both(runs):
    for ranks, _ in runs.values():
        for rank in ranks:
            assert "NaN or infinite at optimizer step 1" in rank["error"]
            assert rank["moved"] == 0
        assert "mlp.up_proj" in ranks[-1]["error"]
