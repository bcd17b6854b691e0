"""A training step waits for the device once.

On a GPU a step that asks for a number of a tensor, or for the size of one that depends on values, waits until the GPU has
done all that was queued. On the CPU nothing waits, but the same operations run: they are counted here, by who asks. What
Transformers and torch ask for is theirs.
"""

import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from wagle_trainer import WagleTrainer

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}
ON_THE_HOST = {"_eps_vanishes", "_flushes_denormals"}  # which ask tensors that they make there
READS = ("cpu", "tolist", "item", "numpy")


class Waits(TorchDispatchMode):
    """Counts, between `begin` and `end`, the operations that wait for a device, by the place in wagle_trainer that runs them."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        sizes_depend = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        sizes_depend |= name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITS or sizes_depend:
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name):
        frame = sys._getframe(2)
        while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
            frame = frame.f_back
        if frame is not None and "/wagle_trainer/" in frame.f_code.co_filename:
            place = frame.f_code.co_filename.split("/wagle_trainer/")[-1]
            if frame.f_code.co_qualname.split(".")[0] not in ON_THE_HOST:
                self.found[f"{place}:{frame.f_lineno} {name}"] += 1


class Steps(TrainerCallback):
    """Counts within the steps after the first, which checks what the later ones rely on."""

    def __init__(self, monkeypatch):
        self.mode, self.steps, self.on = Waits(), 0, False
        for name in READS:
            monkeypatch.setattr(torch.Tensor, name, self.counting(name, getattr(torch.Tensor, name)))

    def counting(self, name, method):
        def call(tensor, *args, **kwargs):
            if self.on and name != "item":  # which the mode sees
                self.mode.note(name)
            return method(tensor, *args, **kwargs)

        return call

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= 1:
            self.on = True
            self.mode.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if self.on:
            self.mode.__exit__(None, None, None)
            self.on = False
            self.steps += 1


LOSSES = {
    "npo": {"loss_type": "npo"},
    "npo with kl": {"loss_type": "npo", "loss_kwargs": {"retain_loss": "kl"}},
    "tnpo": {"loss_type": "tnpo"},
    "rmu": {"loss_type": "rmu", "loss_kwargs": {"layer": 1}},
    "random_label": {"loss_type": "random_label"},
}


@pytest.fixture
def waits(make_llama, make_set, arguments, word_tokenizer, monkeypatch):
    """waits(**arguments) -> what waited in three steps of two accumulated batches each."""

    def run(**changes):
        trainer = WagleTrainer(
            make_llama(),
            arguments(
                max_steps=4, gradient_accumulation_steps=2, logging_steps=100, per_device_train_batch_size=2, **changes
            ),
            forget_dataset=make_set(16),
            retain_dataset=make_set(16, seed=1),
            processing_class=word_tokenizer,
        )
        steps = Steps(monkeypatch)
        trainer.add_callback(steps)
        trainer.train()
        assert steps.steps == 3
        return steps.mode.found

    return run


@pytest.mark.parametrize("loss", LOSSES)
def test_compact_training_waits_once_a_step(waits, loss):
    found = waits(attribution="random", density=0.05, **LOSSES[loss])
    assert sum(found.values()) == 3, found
    assert all("gradient_check.py" in place for place in found)


@pytest.mark.parametrize(
    "changes", [{"attribution": None}, {"attribution": "random", "density": 0.8, "optim": "adamw_torch_fused"}]
)
def test_so_does_training_with_dense_gradients(waits, changes):
    found = {place: number for place, number in waits(**changes).items() if "masking/bits.py" not in place}
    assert sum(found.values()) == 3, found  # on CPUs, bits are unpacked by NumPy
