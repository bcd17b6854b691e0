"""What `WagleTrainer` does at moments of a run that only callbacks are told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainerCallback

from wagle_trainer.adapters.adapter_checkpoints import AdapterCheckpoints
from wagle_trainer.data.pairing import PairSampler

if TYPE_CHECKING:
    from wagle_trainer.trainer import WagleTrainer


class EpochOfPairs(TrainerCallback):
    """Tells the sampler its epoch: accelerate does not, once it skips batches on several processes."""

    def __init__(self, sampler: PairSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class References(TrainerCallback):
    """Has the trainer compute what its loss needs of the model before unlearning."""

    def __init__(self, trainer: WagleTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.compute_references()


class BaseOfAdapter(TrainerCallback):
    """Has the base model remembered, once the mask is known and before a weight changes."""

    def __init__(self, trainer: WagleTrainer, adapter: AdapterCheckpoints):
        self.trainer, self.adapter = trainer, adapter

    def on_train_begin(self, args, state, control, **kwargs):
        assert self.trainer.mask is not None
        self.adapter.begin(self.trainer.model, self.trainer.mask)


class StepEnd(TrainerCallback):
    """Lets the objective adapt after every optimizer step."""

    def __init__(self, trainer: WagleTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_step()
