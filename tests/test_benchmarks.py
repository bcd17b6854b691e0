"""Every benchmark runs from end to end on a tiny model and the bundled people, and writes its ratios."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from wagle_trainer.data import fictional_tokenizer

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, make_llama) -> Path:
    """A tiny Llama with the tokenizer of the bundled people."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = fictional_tokenizer()
    make_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, one_thread):
    """run(script, *arguments) -> its JSON file. In this process, which has imported what scripts need."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(script: str, *arguments: object) -> dict:
        output = tmp_path / "results" / "out.json"
        command = [script, "--repeats", 1, "--output", output, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        importlib.import_module(script.removesuffix(".py")).main()
        printed = capsys.readouterr().out
        result = json.loads(output.read_text())
        assert {"title", "rows", "settings", "versions", "machine"} <= set(result)
        for row in result["rows"]:
            assert row[""] in printed
            assert row.get("ratio", 1.0) > 0
        return result

    return run


def ratios(result: dict) -> dict[str, float]:
    return {row[""]: row["ratio"] for row in result["rows"]}


def test_adapter(run):
    options = ("--random_llama", "tiny", "--examples", 4, "--batch_size", 2, "--density", 0.3)
    result = run("adapter.py", *options)
    assert list(ratios(result)) == [
        "adapter written into the model (floor)",
        "adapter merged",
        "adapter active",
        "adapter disabled",
    ]
    assert result["rows"][0]["ratio"] == 1
    assert 1 < result["settings"]["adapter_bytes_over_bound"] < 1.5  # of a tiny model, names are much


def test_attribution(run, model_folder):
    options = ("--examples", 4, "--batch_size", 2, "--questions", 4, "--raw_llama", "tiny")
    result = run("attribution.py", "--model", model_folder, *options)
    names = list(ratios(result))
    assert names[:4] == [
        "plain forward + backward (floor)",
        "attribution without selection",
        "attribution with selection and mask",
        "attribution with sums in host memory",
    ]
    assert all(row["peak MiB over the model"] > 0 for row in result["rows"][:4])
    assert [name.split(": ")[0] for name in names[4:]] == ["raw sets to mask, 4 + 4 questions, tiny model"] * 2
    assert result["rows"][-1]["speed-up"] == pytest.approx(1 / result["rows"][-1]["ratio"])


def test_attribution_memory(run):
    result = run("attribution_memory.py", "--random_llama", "19m", "--examples", 2)
    floor, device, host, whole = (row["x parameters"] for row in result["rows"])
    assert floor == 0
    assert device > 1  # sums of the forget and of the retain gradients
    assert host < 0.5 > whole


def test_gpu_runs_pieces_and_reports_those_that_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu = importlib.import_module("gpu")
    known = gpu.pieces({"tiny": ["--examples", "2", "--batch_size", "2"]})
    assert {command[0] for command in known.values()} <= {path.name for path in BENCHMARKS.glob("*.py")}
    chosen = {
        "npo_tiny": known["npo_tiny"],
        "broken": ["selection.py", "--weights", "nothing"],
        "slow": ["selection.py", "--weights", "9"],
    }
    monkeypatch.setattr(gpu, "pieces", lambda shapes: chosen)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--shapes", "tiny", "--output_dir", str(tmp_path)])
    outcome = {"npo_tiny": (0, ""), "broken": (2, "invalid int value: 'nothing'")}

    def run(call, timeout, **_):
        name = Path(call[-1]).stem
        if name == "slow":
            raise gpu.subprocess.TimeoutExpired(call, timeout)
        if name == "npo_tiny":
            Path(call[-1]).write_text("{}")
        return gpu.subprocess.CompletedProcess(call, outcome[name][0], "", outcome[name][1])

    monkeypatch.setattr(gpu.subprocess, "run", run)
    with pytest.raises(SystemExit):
        gpu.main()
    rows = {row["piece"]: row["error"] for row in json.loads((tmp_path / "pieces.json").read_text())["rows"]}
    assert rows["npo_tiny"] is None
    assert "invalid int value" in rows["broken"] and "took more than" in rows["slow"]
    del chosen["npo_tiny"]  # it has its file, and would not run again anyway
    capsys.readouterr()


def test_selection(run):
    result = run("selection.py", "--weights", 100_000, "--tensors", 3, "--densities", 0.8)
    rows = [row for row in result["rows"] if row[""].endswith("selection + mask")]
    assert [row[""] for row in rows] == ["density 0.8: selection + mask"]
    assert all(1 <= row["bytes on disk / (N / 8)"] < 1.2 for row in rows)
    assert all("memory ratio" in row for row in rows)


def test_npo_step(run):
    result = run("npo_step.py", "--random_llama", "tiny", "--examples", 4, "--batch_size", 2)
    assert min(ratios(result).values()) > 0
    floors = [row[""] for row in result["rows"] if row["ratio"] == 1]
    assert len(floors) >= 1
    assert floors[0].startswith("plain step")
    assert any("(floor of memory)" in row[""] and row["memory ratio"] == 1 for row in result["rows"])
    assert result["rows"][-1][""] == "NPO + retain step"


def test_masked_step(run, model_folder):
    options = ("--examples", 2, "--batch_size", 2, "--densities", 0.8, "--compact", 0.5)
    result = run("masked_step.py", "--model", model_folder, *options)
    assert list(ratios(result)) == [
        "unmasked, AdamW",
        "mask of density 0.8, AdamW",
        "mask of density 0.5, CompactAdamW",
    ]
    assert result["rows"][0]["ratio"] == 1
    assert result["rows"][2]["state / (density x dense)"] == pytest.approx(1, abs=0.05)


def test_compact_training(run, model_folder):
    options = ("--examples", 2, "--batch_size", 2, "--density", 0.05)
    rows = run("compact_training.py", "--model", model_folder, *options)["rows"]
    assert [row[""] for row in rows] == [
        "backward pass, gradients freed as they arrive",
        "unmasked, AdamW",
        "masked, dense gradients, compact moments",
        "masked, compact training",
    ]
    shares = [row.get("selected weights that move, bfloat16, lr 1e-5, 4 steps") for row in rows]
    assert shares[3] > 0.95 > shares[2]


def test_evaluation(run, model_folder):
    options = ("--forget_split", "forget05", "--rows", 2, "--reference_rows", 1, "--max_new_tokens", 4)
    result = run("evaluation.py", "--model", model_folder, *options)
    assert list(ratios(result)) == [
        "one example at a time, once for each metric, 1 rows of each set (floor)",
        "one example at a time, nothing twice, 1 rows of each set",
        "evaluate_tofu, 1 rows of each set",
        "evaluate_tofu, 2 rows of each set",
        "evaluate_tofu, 2 rows of each set, answers of one token",
    ]
    assert result["rows"][0]["ratio"] == result["rows"][1]["speed-up over nothing twice"] == 1
    of = "seconds" if result["machine"]["gpu"] else "seconds of the processor"
    seconds = [row[of] for row in result["rows"]]
    assert result["rows"][2]["speed-up"] == pytest.approx(seconds[0] / seconds[2])
    assert result["rows"][3]["speed-up"] == pytest.approx(2 * seconds[0] / seconds[3])  # per row


def test_objectives(tmp_path, monkeypatch, make_llama):
    """On a tiny model that knows nothing, for a step or two."""
    folder, output = tmp_path / "small-llama-full-0", tmp_path / "out.json"
    tokenizer = fictional_tokenizer()
    make_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {"--models": tmp_path, "--output": output, "--epochs": 0.2, "--objectives": "altpo"}
    monkeypatch.setattr(sys, "argv", ["objectives.py", *(str(part) for pair in options.items() for part in pair)])
    monkeypatch.syspath_prepend(BENCHMARKS)
    importlib.import_module("objectives").main()
    result = json.loads(output.read_text())
    assert [row["weights"] for row in result["rows"]] == ["before", "dense", "wagle", "random"]
    assert all(0 <= row[f"{kind} probability"] <= 1 for row in result["rows"] for kind in ("forget", "retain"))


def test_small_gpu(run):
    result = run("small_gpu.py", "--random_llama", "tiny", "--tokens", 16, "--density", 0.02, "--examples", 4)
    assert [row[""] for row in result["rows"]] == [
        "attribution, mask and reference log-probabilities",
        "first step",
        "each later step",
    ]
    settings = result["settings"]
    assert settings["float32_masters"] == settings["selected"] == int(0.02 * settings["weights"])
    assert 0 < settings["of_these_changed"] < settings["looked_at"]
