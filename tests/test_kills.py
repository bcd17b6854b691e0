"""Twenty runs that are killed at random moments, and resumed: all end with the same weights, log and history.

Not only between the events of a step, as in test_resume.py: while a file is written, renamed or removed as well.
"""

import json
import os
import random
import signal

import pytest

from wagle_trainer.utils.atomic_files import is_temporary

pytestmark = pytest.mark.families  # they take a minute
KILLS = 20


@pytest.fixture
def run(fork_server, make_llama, make_set, make_word_tokenizer, tmp_path):
    """run(output_dir, file_event, seconds) -> (exit code, what the run wrote at its end, or its output)."""
    make_llama(attention_dropout=0.1).save_pretrained(tmp_path / "model")
    make_word_tokenizer().save_pretrained(tmp_path / "model")
    make_set(10).save_to_disk(tmp_path / "forget")
    make_set(14, seed=1).save_to_disk(tmp_path / "retain")
    server = fork_server("wagle_trainer.trainer", "wagle_trainer.evaluation")
    script = os.path.join(os.path.dirname(__file__), "killed_script.py")

    def start(output_dir, file_event=0, seconds=0.0):
        arguments = [str(tmp_path), str(output_dir), str(file_event), str(seconds)]
        [(code, output)] = server.run([{"script": script, "arguments": arguments}])
        end = output_dir / "end.json"
        return code, json.loads(end.read_text()) if end.exists() else output

    return start


def test_twenty_kills_are_twenty_equal_resumes(run, tmp_path):
    code, whole = run(tmp_path / "whole")
    assert code == 0, whole
    assert whole["steps"] == 9
    kills, resumed_from, draw = 0, [], random.Random(0)
    for attempt in range(3 * KILLS):
        if kills == KILLS:
            break
        output_dir, killed = tmp_path / f"run{attempt}", 0
        # One in each tenth of the run, at or shortly after a file is touched. Every third run is killed twice: the second
        # time while it resumes.
        for again in range(1 + (attempt % 3 == 2)):
            share = draw.uniform(0, 0.5) if again else (attempt % 10 + draw.random()) / 10
            event = max(1, round(share * whole["file_events"]))
            code, _ = run(output_dir, event, draw.uniform(1e-4, 0.01))
            killed += code == -signal.SIGALRM
        if not killed:  # it ended before the delay had passed
            continue
        code, end = run(output_dir)
        assert code == 0, end
        kills += killed
        resumed_from.append(end["resumed"] and os.path.basename(end["resumed"]))
        for part in ("steps", "weights", "log", "history"):
            assert end[part] == whole[part], f"{part} of run {attempt}, resumed from {end['resumed']}"
        left = [path for path in output_dir.rglob("*") if is_temporary(path) and "checkpoint" in str(path)]
        assert not left
    print(f"{kills} kills; resumed from {resumed_from}")
    assert kills >= KILLS
    assert len(set(resumed_from)) > 4  # at the beginning, in the middle and near the end
