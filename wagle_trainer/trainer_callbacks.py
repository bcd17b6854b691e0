"""Callbacks of `WagleTrainer` for moments of a run that only callbacks are told of."""

from __future__ import annotations

from collections.abc import Callable

from transformers import TrainerCallback

from wagle_trainer.data.pairing import PairSampler


class EpochOfPairs(TrainerCallback):
    """Set the sampler's epoch: accelerate does not, once it skips batches on several processes."""

    def __init__(self, sampler: PairSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class _OnTrainBegin(TrainerCallback):
    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_train_begin(self, args, state, control, **kwargs):
        self.function()


class References(_OnTrainBegin):
    """Compute the outputs of the reference model, before a weight changes."""


class BaseOfAdapter(_OnTrainBegin):
    """Remember the base model of an adapter, once the mask is known and before a weight changes."""


class StepEnd(TrainerCallback):
    """Let the objective adapt after every optimizer step."""

    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_step_end(self, args, state, control, **kwargs):
        self.function()


class ForgettingSummary(TrainerCallback):
    """Measure forget and retain answers before the first step and after the last one, and tell of it.

    Args:
        measure: split -> mean answer probability of the model as it is now.
        tell: called at the end with both measurements; the first one is empty where a run was resumed.
    """

    def __init__(
        self, measure: Callable[[], dict[str, float]], tell: Callable[[dict[str, float], dict[str, float]], None]
    ):
        self.measure, self.tell = measure, tell
        self.before: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = self.measure() if state.global_step == 0 else {}

    def on_train_end(self, args, state, control, **kwargs):
        self.tell(self.before, self.measure())
