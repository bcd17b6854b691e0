"""Two processes (gloo, on the CPU) do what one does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wagle_trainer import WeightMask

SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from wagle_trainer import WagleConfig, WagleTrainer

folder, output, batch_size, loss_kwargs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
trainer = WagleTrainer(
    AutoModelForCausalLM.from_pretrained(folder / "model"),
    WagleConfig(
        output, per_device_train_batch_size=batch_size, gradient_accumulation_steps=2, num_train_epochs=2,
        optim="sgd", learning_rate=0.05, weight_decay=0.1, density=0.3, gradient_checkpointing=False, logging_steps=1,
        save_strategy="steps", save_steps=3, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False, loss_kwargs=loss_kwargs,
        ddp_backend="gloo" if batch_size == 2 else None,
    ),
    forget_dataset=load_from_disk(str(folder / "forget")),
    retain_dataset=load_from_disk(str(folder / "retain")),
    processing_class=AutoTokenizer.from_pretrained(folder / "model"),
)
trainer.train(resume_from_checkpoint=(sys.argv[5:] or [None])[0])
trainer.save_model()
rank = trainer.args.process_index
result = {"world": trainer.args.world_size, "digest": trainer.mask.digest, "log": trainer.state.log_history}
(Path(output) / f"rank{rank}.json").write_text(json.dumps(result))
"""


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("loss_kwargs", [{"beta": 0.5}, {"retain_loss": "kl"}], ids=["nll", "kl"])
def test_two_processes_train_what_one_trains(loss_kwargs, tmp_path, make_llama, make_set, word_tokenizer):
    make_llama().save_pretrained(tmp_path / "model")
    word_tokenizer.save_pretrained(tmp_path / "model")
    make_set(16).save_to_disk(str(tmp_path / "forget"))
    make_set(24, seed=1).save_to_disk(str(tmp_path / "retain"))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}

    def run(name: str, launcher: list[str], batch_size: int, *resume_from: str) -> Path:
        command = [
            *launcher,
            str(script),
            str(tmp_path),
            str(tmp_path / name),
            str(batch_size),
            json.dumps(loss_kwargs),
            *resume_from,
        ]
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=180)
            finally:
                if process.poll() is None:  # the launcher's own processes, too
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, output[-3000:]
        return tmp_path / name

    one = run("one", [sys.executable], batch_size=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = run("two", torchrun, batch_size=2)

    ranks = [json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["digest"] == ranks[1]["digest"]

    masks = [WeightMask.from_pretrained(folder) for folder in (one, two)]
    assert masks[0].num_selected == masks[1].num_selected
    different = (masks[0] | masks[1]).num_selected - (masks[0] & masks[1]).num_selected
    assert different <= 1e-4 * masks[0].num_weights

    before, after_one, after_two = (load_file(f / "model.safetensors") for f in (tmp_path / "model", one, two))
    for name in masks[1]:
        frozen = ~masks[1][name]
        assert torch.equal(before[name][frozen].view(torch.int32), after_two[name][frozen].view(torch.int32)), name
        both = masks[0][name] == masks[1][name]
        torch.testing.assert_close(after_two[name][both], after_one[name][both], rtol=1e-3, atol=1e-4)

    # What is logged is of all processes, too.
    logs = [json.loads((folder / "rank0.json").read_text())["log"] for folder in (one, two)]
    for key in ("forget_loss", "retain_loss", "grad_norm"):
        values = [[entry[key] for entry in log if key in entry] for log in logs]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4), key

    # Resumed in the middle of the second epoch, with the pairs of that epoch: the same weights, bit for bit.
    if "retain_loss" not in loss_kwargs:
        resumed = load_file(run("resumed", torchrun, 2, str(two / "checkpoint-3")) / "model.safetensors")
        assert all(torch.equal(resumed[name], after_two[name]) for name in after_two)
        rank = json.loads((tmp_path / "resumed" / "rank0.json").read_text())
        assert rank["digest"] == ranks[0]["digest"]
