"""A run that may be killed at any moment: python killed_script.py FOLDER OUTPUT_DIR FILE_EVENT SECONDS

Trains the model in FOLDER and resumes from the last complete checkpoint, if there is one. With FILE_EVENT above 0 the
kernel ends the process SECONDS after that many files were opened, renamed or removed: no handler and no `finally` runs.
Otherwise, or where there are fewer, it writes OUTPUT_DIR/end.json: how many file events there were, the digest of the final
weights, the log and the history of evaluations.
"""

import hashlib
import json
import signal
import sys
from pathlib import Path

import torch
from datasets import load_from_disk

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.evaluation import EvaluationCallback
from wagle_trainer.utils.complete_checkpoints import last_complete_checkpoint

# Clocks, and Trainer's summary of the steps since the run was resumed.
OF_ONE_PROCESS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


def norm(model, tokenizer):
    """A number for the history that depends on all weights."""
    return {"norm": sum(float(p.detach().double().pow(2).sum()) for p in model.parameters())}


def digest(model):
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sha.update(name.encode())
        sha.update(parameter.detach().numpy().tobytes())
    return sha.hexdigest()


folder, output_dir, last_event, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
torch.set_num_threads(1)
signal.signal(signal.SIGALRM, signal.SIG_DFL)
file_events = 0


def count(event, arguments):
    """An audit hook. Counts what happens to files, not seconds: how far a run gets in a second depends on the machine."""
    global file_events
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
        file_events += 1
        if file_events == last_event:
            signal.setitimer(signal.ITIMER_REAL, seconds)


sys.addaudithook(count)
config = WagleConfig(
    output_dir,
    loss_kwargs={"retain_loss": "kl"},
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    num_train_epochs=3,
    learning_rate=5e-3,
    weight_decay=0.1,
    density=0.3,
    warmup_steps=2,
    save_steps=1,
    save_total_limit=2,
    logging_steps=1,
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
)
trainer = WagleTrainer(
    f"{folder}/model",
    config,
    forget_dataset=load_from_disk(f"{folder}/forget"),
    retain_dataset=load_from_disk(f"{folder}/retain"),
    callbacks=[EvaluationCallback(norm, every_n_steps=2)],
)
resumed = last_complete_checkpoint(output_dir)[0]
trainer.train(resume_from_checkpoint=resumed)
trainer.save_model()
end = {
    "file_events": file_events,
    "resumed": resumed,
    "steps": trainer.state.global_step,
    "weights": digest(trainer.model),
    "log": [
        {key: value for key, value in entry.items() if key not in OF_ONE_PROCESS}
        for entry in trainer.state.log_history
    ],
    "history": json.loads(Path(output_dir, "history.json").read_text()),
}
Path(output_dir, "end.json").write_text(json.dumps(end))
