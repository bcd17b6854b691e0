"""`wagle demo` from an empty folder to a verdict. It takes a minute, so it runs with the recipes' bundled runs."""

import json

import pytest
import torch

from wagle_trainer.cli import main
from wagle_trainer.forgetting import demo as module


@pytest.mark.applications
def test_the_demo_forgets(tmp_path, capsys):
    assert main(["demo", "--output_dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Forgotten: ") and "Next: " in said.out
    assert "Teaching 40 invented people" in said.err and "it/s" not in said.err
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["forgotten"] and verdict["neighbours"]["from"] == "made"
    assert verdict["patch"]["weights"] < 80_000 and (tmp_path / "out" / "report.html").is_file()


def test_it_takes_one_thread_and_gives_the_others_back(tmp_path, monkeypatch):
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(module, "small_llama", lambda *_, **__: seen.append(torch.get_num_threads()))
        monkeypatch.setattr(module, "forget", lambda *_, **__: seen.append(torch.get_num_threads()))
        module.demo(tmp_path, progress=False)
        assert (seen, torch.get_num_threads()) == ([1, 1], 2)
    finally:
        torch.set_num_threads(threads)
