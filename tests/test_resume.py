import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file, save_file

from wagle_trainer import WagleTrainer, WeightMask
from wagle_trainer.losses.reference_checkpoint import REFERENCE_NAME, ReferenceFile
from wagle_trainer.utils.complete_checkpoints import last_complete_checkpoint

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

# Nine steps: five batches per epoch, two to a step, so that the last step of each epoch is a ragged one. Dropout makes
# the run depend on the random state, too.
SCRIPT = '''
import os, signal, sys
import torch
from datasets import load_from_disk
from transformers import TrainerCallback
from wagle_trainer import WagleConfig, WagleTrainer

torch.set_num_threads(1)


class Kill(TrainerCallback):
    """SIGKILL at an event of a step, as the out-of-memory killer would."""

    def __init__(self, step, event):
        self.step = step
        setattr(self, event, self.kill)

    def kill(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(folder, output_dir, callbacks=None, forget=None, retain=None, model=None, mask=None,
    eval_dataset=None, **changes,
):
    settings = dict(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3, learning_rate=5e-3,
        weight_decay=0.1, density=0.3, warmup_steps=2, save_steps=2, logging_steps=1, report_to="none",
        disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False,
    )
    return WagleTrainer(
        model or f"{folder}/model",
        WagleConfig(output_dir, **{**settings, **changes}),
        forget_dataset=load_from_disk(f"{folder}/forget") if forget is None else forget,
        retain_dataset=load_from_disk(f"{folder}/retain") if retain is None else retain,
        callbacks=callbacks,
        mask=mask,
        eval_dataset=eval_dataset,
    )


if __name__ == "__main__":
    folder, output_dir, step, event = sys.argv[1:]
    make_trainer(folder, output_dir, [Kill(int(step), event)]).train()
'''
STEPS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_llama, make_set):
    """The script, its model and its sets."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "train.py").write_text(SCRIPT)
    make_llama(attention_dropout=0.1).save_pretrained(folder / "model")
    make_set(10).save_to_disk(folder / "forget")
    make_set(14, seed=1).save_to_disk(folder / "retain")
    return folder


@pytest.fixture(autouse=True)
def tokenizer_beside_the_model(folder, word_tokenizer):
    word_tokenizer.save_pretrained(folder / "model")


@pytest.fixture(scope="module")
def make_trainer(folder):
    make = runpy.run_path(str(folder / "train.py"))["make_trainer"]
    return lambda output_dir, **kwargs: make(str(folder), str(output_dir), **kwargs)


@pytest.fixture(scope="module")
def uninterrupted(make_trainer, folder, tmp_path_factory):
    """Runs that nobody killed, by their arguments: (final weights, folder with the checkpoints)."""
    done = {}

    def run(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in done:
            output_dir = tmp_path_factory.mktemp("uninterrupted")
            trainer = make_trainer(output_dir, **changes)
            trainer.train()
            assert trainer.state.global_step == STEPS
            done[key] = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}, output_dir
        return done[key]

    return run


@pytest.fixture
def interrupted(uninterrupted, tmp_path):
    """interrupted(after, **changes): what a run that was killed some time after a checkpoint has left behind."""

    def make(after=4, **changes):
        output_dir = tmp_path / "out"
        shutil.copytree(uninterrupted(**changes)[1], output_dir)
        for checkpoint in output_dir.glob("checkpoint-*"):
            if int(checkpoint.name.split("-")[1]) > after:
                shutil.rmtree(checkpoint)
        return output_dir

    return make


def assert_same_bits(model, weights):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach().view(torch.int32), weights[name].view(torch.int32)), name


@pytest.mark.slow
def test_killed_run_ends_with_the_same_weights(folder, make_trainer, uninterrupted, tmp_path):
    step = random.SystemRandom().randint(3, STEPS - 1)
    event = random.SystemRandom().choice(["on_step_begin", "on_substep_end", "on_step_end", "on_save", "on_log"])
    if event == "on_save":
        step -= step % 2  # only then there is one
    elif event == "on_substep_end" and step % 3 == 2:
        step -= 1  # the ragged last step of an epoch has no substep
    killed = subprocess.run(
        [sys.executable, str(folder / "train.py"), str(folder), str(tmp_path / "out"), str(step), event],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    newest, _ = last_complete_checkpoint(tmp_path / "out")
    assert newest is not None
    trainer = make_trainer(tmp_path / "out")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == STEPS
    print(f"killed {event} of step {step}, resumed from {newest}")
    assert_same_bits(trainer.model, uninterrupted()[0])


@pytest.mark.parametrize("after", [2, 4, 6, 8])
def test_resume_from_every_checkpoint(after, make_trainer, uninterrupted, interrupted, monkeypatch):
    """Steps 3 and 6 end an epoch: each of these lies differently to it. The mask is read, not computed."""
    output_dir = interrupted(after)
    trainer = make_trainer(output_dir)
    monkeypatch.setattr("wagle_trainer.attribution.attribution_callback.attribute", None)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == STEPS
    assert_same_bits(trainer.model, uninterrupted()[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "grad_diff", "loss_kwargs": {"retain_loss": "kl"}},
        {"loss_kwargs": {"retain_loss": "kl"}},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"attribution": None},
    ],
    ids=["grad_diff-kl", "npo-kl", "sgd", "dense"],
)
def test_resume_with_other_settings(changes, make_trainer, uninterrupted, interrupted):
    trainer = make_trainer(interrupted(**changes), **changes)
    trainer.train(resume_from_checkpoint=True)
    assert_same_bits(trainer.model, uninterrupted(**changes)[0])


def test_resume_by_path_from_elsewhere(make_trainer, uninterrupted, interrupted, tmp_path):
    checkpoint = interrupted() / "checkpoint-4"
    trainer = make_trainer(tmp_path / "new")
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_same_bits(trainer.model, uninterrupted()[0])


def test_resume_with_the_same_mask_given(make_trainer, uninterrupted, interrupted):
    output_dir = interrupted()
    mask = WeightMask.from_pretrained(output_dir / "checkpoint-4")
    trainer = make_trainer(output_dir, mask=mask)
    trainer.train(resume_from_checkpoint=True)
    assert_same_bits(trainer.model, uninterrupted()[0])


# Half-written checkpoints


@pytest.mark.parametrize("damage", ["truncated", "removed", "empty"])
def test_half_written_checkpoint_is_passed_over(damage, make_trainer, uninterrupted, interrupted, caplog):
    output_dir = interrupted(after=6)
    state = output_dir / "checkpoint-6" / "trainer_state.json"
    if damage == "removed":
        state.unlink()
    else:
        state.write_text(state.read_text()[:100] if damage == "truncated" else "")
    trainer = make_trainer(output_dir)
    trainer.train(resume_from_checkpoint=True)
    assert "Skipping incomplete checkpoints" in caplog.text
    assert "checkpoint-6" in caplog.text
    assert "checkpoint-4" not in caplog.text
    assert_same_bits(trainer.model, uninterrupted()[0])
    # Going on has written the one that was incomplete again.
    assert last_complete_checkpoint(output_dir) == (str(output_dir / f"checkpoint-{STEPS}"), [])


def test_incomplete_checkpoint_by_path_is_an_error(make_trainer, interrupted):
    output_dir = interrupted()
    (output_dir / "checkpoint-4" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4 is not a complete checkpoint.*trainer_state\.json"):
        make_trainer(output_dir).train(resume_from_checkpoint=str(output_dir / "checkpoint-4"))


@pytest.mark.parametrize("some", [True, False])
def test_no_complete_checkpoint_is_an_error(some, make_trainer, tmp_path):
    if some:
        (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(ValueError, match="no complete checkpoint in .*out"):
        make_trainer(tmp_path / "out").train(resume_from_checkpoint=True)


def test_last_complete_checkpoint_counts_numbers(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-x", "other-200"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-100"), [])
    (tmp_path / "checkpoint-100" / "trainer_state.json").unlink()
    assert last_complete_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-10"), [str(tmp_path / "checkpoint-100")])
    assert last_complete_checkpoint(tmp_path / "none") == (None, [])


# What must not change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.4}, r"requested_density was 0\.3 and is now 0\.4"),
        ({"attribution": "snip"}, "score was 'wagle' and is now 'snip'"),
        ({"attribution_gamma": 1.0}, r"gamma was 1e-06 and is now 1\.0"),
        ({"attribution_scope": "tensor"}, "scope was 'global' and is now 'tensor'"),
        ({"attribution_exclude": ["embed"]}, r"exclude was None and is now \['embed'\]"),
        ({"attribution_gamma": "auto"}, "gamma_rule was None and is now 'auto'"),
        ({"density": "auto"}, "density_rule was None and is now 'auto'"),
    ],
)
def test_changed_mask_settings_are_an_error(changes, message, make_trainer, interrupted):
    trainer = make_trainer(interrupted(), **changes)
    with pytest.raises(ValueError, match=rf"{message}.*old values, or start a new run"):
        trainer.train(resume_from_checkpoint=True)


def test_mask_of_the_checkpoint_counts_after_a_run_of_the_same_trainer(make_trainer, interrupted, tmp_path):
    """A trainer that has trained holds a mask; resuming from another run's checkpoint, that run's is in force."""
    trainer = make_trainer(tmp_path / "new", attribution_gamma=1.0, max_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match=r"gamma was 1e-06 and is now 1\.0"):
        trainer.train(resume_from_checkpoint=str(interrupted() / "checkpoint-4"))


def test_other_mask_given_is_an_error(make_trainer, interrupted):
    output_dir = interrupted()
    mask = ~WeightMask.from_pretrained(output_dir / "checkpoint-4")
    with pytest.raises(ValueError, match="not the one that the checkpoint in .*checkpoint-4 was trained with"):
        make_trainer(output_dir, mask=mask).train(resume_from_checkpoint=True)


def test_checkpoint_without_mask_is_an_error(make_trainer, interrupted):
    output_dir = interrupted()
    for file in ("mask.safetensors", "mask_config.json"):
        (output_dir / "checkpoint-4" / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask in .*checkpoint-4.*pass mask="):
        make_trainer(output_dir).train(resume_from_checkpoint=True)


def test_altered_mask_is_an_error(make_trainer, interrupted):
    output_dir = interrupted()
    file = output_dir / "checkpoint-4" / "mask.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="a file was altered or replaced"):
        make_trainer(output_dir).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("loss_type", ["npo", "grad_diff"])
@pytest.mark.parametrize("role", ["forget", "retain"])
def test_changed_data_is_an_error(role, loss_type, make_trainer, interrupted, folder):
    rows = list(Dataset.load_from_disk(folder / role))
    rows[3] = {**rows[3], "completion": " w1"}
    trainer = make_trainer(interrupted(loss_type=loss_type), loss_type=loss_type, **{role: Dataset.from_list(rows)})
    with pytest.raises(ValueError, match=f"The {role} set is not the one .*checkpoint-4.*start a new run"):
        trainer.train(resume_from_checkpoint=True)


def test_checkpoint_of_another_trainer_is_an_error(make_trainer, interrupted):
    output_dir = interrupted()
    (output_dir / "checkpoint-4" / REFERENCE_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=f"checkpoint-4 has no {REFERENCE_NAME}"):
        make_trainer(output_dir).train(resume_from_checkpoint=True)


def test_reference_values_come_from_the_checkpoint(make_trainer, uninterrupted, interrupted):
    """NPO needs no model for it: resumed with the trained weights as `model`, the run ends the same."""
    output_dir = interrupted()
    trainer = make_trainer(output_dir, model=str(output_dir / "checkpoint-4"))
    trainer.train(resume_from_checkpoint=True)
    assert_same_bits(trainer.model, uninterrupted()[0])


@pytest.mark.parametrize("loss_type", ["npo", "grad_diff"])
def test_kl_to_a_trained_model_is_an_error(loss_type, make_trainer, interrupted):
    changes = {"loss_type": loss_type, "loss_kwargs": {"retain_loss": "kl"}}
    output_dir = interrupted(**changes)
    trainer = make_trainer(output_dir, model=str(output_dir / "checkpoint-4"), **changes)
    with pytest.raises(ValueError, match=r"reference model.*not one of the checkpoints"):
        trainer.train(resume_from_checkpoint=True)


def test_references_are_saved_before_the_checkpoint_is_complete(interrupted):
    values = load_file(interrupted() / "checkpoint-4" / REFERENCE_NAME)
    assert values.keys() == {"forget"}
    assert values["forget"].shape[0] == 10  # log-probabilities of the answers' tokens, then zeros
    assert bool((values["forget"].sum(-1) < 0).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "simnpo"}, "loss_type was 'npo' and is now 'simnpo'"),
        ({"loss_kwargs": {"beta": 0.2}}, r"loss_kwargs was \{\} and is now \{'beta': 0.2\}"),
        ({"retain_weight": 2.0}, r"retain_weight was 1\.0 and is now 2\.0"),
        ({"seed": 7}, "seed was 42 and is now 7"),
        ({"optim": "sgd"}, "optim was 'adamw_torch_fused' and is now 'sgd'"),
    ],
)
def test_changed_settings_are_an_error(changes, message, make_trainer, interrupted):
    with pytest.raises(ValueError, match=f"checkpoint-4 is of a run with other settings: {message}.*the old values"):
        make_trainer(interrupted(), **changes).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("damage", ["value", "cut off"])
def test_damaged_reference_values_are_an_error(damage, make_trainer, interrupted):
    output_dir = interrupted()
    file = output_dir / "checkpoint-4" / REFERENCE_NAME
    content = file.read_bytes()
    file.write_bytes(content[:-9] if damage == "cut off" else content[:-1] + bytes([content[-1] ^ 1]))
    message = "cannot be read" if damage == "cut off" else "altered or replaced"
    with pytest.raises(ValueError, match=f"{REFERENCE_NAME} .*{message}.*another checkpoint"):
        make_trainer(output_dir).train(resume_from_checkpoint=True)


def test_checkpoints_of_version_0_1_0_can_be_read(tmp_path):
    """They call the chosen answers preferred, and have neither digest nor settings."""
    tensors = {"forget": torch.ones(2, 3), "preferred": torch.zeros(2, 4), "retain_before": torch.ones(5)}
    save_file(tensors | {"loss.dual": torch.ones(())}, tmp_path / REFERENCE_NAME, {"forget": "a", "preferred": "b"})
    saved = ReferenceFile.load(tmp_path)
    assert {name: tuple(t.shape) for name, t in saved.log_probs.items()} == {"forget": (2, 3), "chosen": (2, 4)}
    assert saved.identities.keys() == {"retain"}
    assert saved.objective == {"dual": torch.ones(())}
    assert saved.fingerprints == {"forget": "a", "chosen": "b"}
    saved.check_settings({"seed": 3}, "folder")


# Another run's folder


class Killed(BaseException):
    pass


def test_a_checkpoint_that_is_overwritten_is_never_half_of_another_run(make_trainer, tmp_path, monkeypatch, caplog):
    make_trainer(tmp_path / "out", max_steps=2).train()
    (tmp_path / "out" / "checkpoint-2" / "of_the_other_run").touch()
    trainer = make_trainer(tmp_path / "out", max_steps=2, seed=7)

    def kill(*_):
        raise Killed

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", kill)
    with pytest.raises(Killed):
        trainer.train()
    assert "checkpoint-2 is of an earlier run" in caplog.text
    assert (tmp_path / "out" / "checkpoint-2" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "checkpoint-2" / "of_the_other_run").exists()
    assert last_complete_checkpoint(tmp_path / "out") == (None, [str(tmp_path / "out" / "checkpoint-2")])


def test_a_finished_run_takes_no_further_step(make_trainer, tmp_path):
    """Four of the nine steps end in the middle of an epoch."""
    first = make_trainer(tmp_path / "out", max_steps=4)
    first.train()
    weights = {name: parameter.detach().clone() for name, parameter in first.model.named_parameters()}
    resumed = make_trainer(tmp_path / "out", max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert_same_bits(resumed.model, weights)


def test_temporary_files_of_a_killed_run_are_removed(make_trainer, interrupted):
    output_dir = interrupted()
    left = output_dir / "checkpoint-2" / f".mask.safetensors.{'0a' * 8}"
    kept = [output_dir / f".results.json.{'0b' * 8}", output_dir / "checkpoint-2" / ".hidden"]  # others may write here
    for path in (left, *kept):
        path.touch()
    make_trainer(output_dir).train(resume_from_checkpoint=True)
    assert not left.exists()
    assert all(path.exists() for path in kept)


# Re-entry


def frozen_have_the_bits_of(model, weights, mask):
    for name, parameter in model.named_parameters():
        frozen = ~mask[name]
        assert torch.equal(parameter.detach()[frozen].view(torch.int32), weights[name][frozen].view(torch.int32)), name


@pytest.fixture
def weights_before(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_best_model_at_the_end(make_trainer, folder, tmp_path, weights_before):
    """The checkpoint with the highest loss on the forget set comes back, with the mask that it was trained with."""
    trainer = make_trainer(
        tmp_path / "out",
        eval_dataset={"forget": load_from_disk(str(folder / "forget"))},
        load_best_model_at_end=True,
        metric_for_best_model="eval_forget_loss",
        greater_is_better=False,  # so that it is not the last one
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-2")
    assert_same_bits(trainer.model, load_file(f"{best}/model.safetensors"))
    frozen_have_the_bits_of(trainer.model, weights_before, trainer.mask)
    trainer.save_model()
    assert WeightMask.from_pretrained(tmp_path / "out", model=trainer.model) == trainer.mask


def test_checkpoints_without_the_optimizer(make_trainer, tmp_path, weights_before):
    first = make_trainer(tmp_path / "out", save_only_model=True)
    first.train()
    assert not (tmp_path / "out" / "checkpoint-4" / "optimizer.pt").exists()
    resumed = make_trainer(tmp_path / "out", save_only_model=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert resumed.mask == first.mask
    assert resumed.state.global_step == STEPS
    frozen_have_the_bits_of(resumed.model, weights_before, resumed.mask)


def test_smaller_batch_after_out_of_memory(make_trainer, tmp_path, weights_before, monkeypatch):
    trainer = make_trainer(tmp_path / "out", auto_find_batch_size=True, per_device_train_batch_size=4)
    compute_loss, sizes = WagleTrainer.compute_loss, []

    def once(self, model, inputs, *args, **kwargs):
        sizes.append(len(inputs["forget"]["index"]))
        if len(sizes) == 4:  # in the second step: some weights have changed already
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(WagleTrainer, "compute_loss", once)
    trainer.train()
    mask, references = trainer.mask, trainer.references.log_probs["forget"].clone()
    assert sizes[0] == 4 and sizes[-1] < 4
    frozen_have_the_bits_of(trainer.model, weights_before, mask)
    # The mask and the reference are those of the model before the first of the attempts.
    monkeypatch.undo()
    fresh = make_trainer(tmp_path / "fresh", max_steps=1, per_device_train_batch_size=4)
    fresh.train()
    assert fresh.mask == mask
    torch.testing.assert_close(fresh.references.log_probs["forget"], references)


def test_mask_without_training(make_trainer, tmp_path, uninterrupted):
    trainer = make_trainer(tmp_path / "out")
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    mask = trainer.compute_mask()
    assert mask == WeightMask.from_pretrained(uninterrupted()[1] / "checkpoint-2")
    assert_same_bits(trainer.model, before)
    assert trainer.mask is mask
    with pytest.raises(ValueError, match="attribution=None"):
        make_trainer(tmp_path / "dense", attribution=None).compute_mask()
