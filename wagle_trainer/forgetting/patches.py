"""One try: train a patch of the model in place, and take it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from wagle_trainer.adapters import SparseAdapter
from wagle_trainer.adapters.adapter import AdapterInfo, base_digests
from wagle_trainer.adapters.operations import write
from wagle_trainer.config import WagleConfig
from wagle_trainer.forgetting.masks import Tokens
from wagle_trainer.forgetting.settings import ForgetSettings
from wagle_trainer.masking import WeightMask
from wagle_trainer.trainer import WagleTrainer


class PatchedModel:
    """A model some of whose weights are trained, put in and taken back, without a second copy of it.

    Args:
        model: the reference model; it is the patched one while a patch is in.

    Attributes:
        model: the model as it is now.
        patch: the patch that is in; None in the reference model.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.patch: SparseAdapter | None = None
        self._base: SparseAdapter | None = None

    def train(
        self,
        tokenizer: Any,
        forget: Sequence[Tokens],
        retain: Sequence[Tokens],
        mask: WeightMask,
        learning_rate: float,
        settings: ForgetSettings,
        folder: Path,
        look: Callable[[], float | None],
        on_step: Callable[[], None],
    ) -> SparseAdapter:
        """Train a patch within a mask, starting from the reference model. It stays in.

        Args:
            tokenizer: the model's.
            forget, retain: tokenized sets.
            mask: the weights that may change.
            learning_rate: of AdamW, to start with.
            settings: objective, steps and batch size.
            folder: for the trainer, which writes nothing into it.
            look: asked every `settings.check_every` steps for the learning rate to go on with; None to stop.
            on_step: called after every step.

        Raises:
            FloatingPointError: the loss is not finite; the reference model is put back.
        """
        self.revert()
        self._base = SparseAdapter.from_mask(self.model, mask, base_digests(self.model, mask))
        watch = _Watch(settings.check_every, learning_rate, look, on_step)
        trainer = WagleTrainer(
            model=self.model,
            args=_config(settings, learning_rate, folder),
            forget_dataset=Dataset.from_list(list(forget)),
            retain_dataset=Dataset.from_list(list(retain)),
            processing_class=tokenizer,
            mask=mask,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except FloatingPointError:
            self._put_back()
            raise
        facts = trainer.training_facts() | {"learning_rate": watch.highest}
        info = AdapterInfo.of(self.model, mask.describe(), facts)
        self.patch = SparseAdapter.from_mask(self.model, mask, self._base.base_digests, info)
        return self.patch

    def values(self) -> SparseAdapter:
        """The patch as it is in the middle of its training."""
        assert self._base is not None
        return SparseAdapter.from_mask(self.model, self._base.mask, self._base.base_digests)

    def return_to(self, earlier: SparseAdapter, steps: int) -> None:
        """Put what `values` gave back in, as the patch.

        Args:
            earlier: the values.
            steps: optimizer steps that had been made.
        """
        assert self.patch is not None
        training = (self.patch.info.training or {}) | {"steps": steps}
        info = replace(self.patch.info, training=training)
        self.patch = SparseAdapter(dict(earlier), earlier.base_digests, info)
        write(self.patch, self.model)

    def apply(self, patch: SparseAdapter) -> None:
        """Put a patch in; another one is taken back first.

        Raises:
            AdapterMismatchError: it belongs to another base model.
        """
        self.revert()
        patch.check(self.model)
        self._base = SparseAdapter.from_mask(self.model, patch.mask, patch.base_digests)
        write(patch, self.model)
        self.patch = patch

    def revert(self) -> None:
        """Take the patch back: the reference model, bitwise identical."""
        if self.patch is not None:
            self._put_back()

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        """The reference model inside, the patched one again afterwards."""
        assert self.patch is not None and self._base is not None
        write(self._base, self.model)
        try:
            yield
        finally:
            write(self.patch, self.model)

    def _put_back(self) -> None:
        assert self._base is not None
        write(self._base, self.model)
        self._base = self.patch = None
        for parameter in self.model.parameters():
            parameter.grad = None
            parameter.requires_grad_(parameter.is_floating_point())


class _Watch(TrainerCallback):
    """Set the learning rate of every step, ask now and then how to go on, and tell of every step."""

    def __init__(self, check_every: int, rate: float, look: Callable[[], float | None], on_step: Callable[[], None]):
        self.check_every, self.look, self.on_step = check_every, look, on_step
        self.rate = self.highest = rate

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = self.rate

    def on_step_end(self, args, state, control, **kwargs):
        self.on_step()
        if state.global_step % self.check_every == 0 and state.global_step < state.max_steps:
            rate = self.look()
            if rate is None:
                control.should_training_stop = True
            else:
                self.rate, self.highest = rate, max(rate, self.highest)


def patch_config(
    folder: Path, learning_rate: float, steps: int, batch_size: int, seed: int, **options: Any
) -> WagleConfig:
    """Arguments of a trainer that trains one patch of several, and keeps nothing but the weights.

    Args:
        folder: for the trainer, which writes nothing into it.
        learning_rate: of AdamW, falling to zero over the steps, unless a callback sets it.
        steps: optimizer steps.
        batch_size: forget examples, and retain examples, in each step.
        seed: of everything random.
        options: other fields of `WagleConfig`: objective, score, ...
    """
    return WagleConfig(
        output_dir=str(folder),
        learning_rate=learning_rate,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        seed=seed,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=0.0,  # AdamW's steps do not depend on the gradient's scale
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        summary_rows=0,
        **options,
    )


def _config(settings: ForgetSettings, learning_rate: float, folder: Path) -> WagleConfig:
    return patch_config(
        folder,
        learning_rate,
        settings.steps,
        settings.batch_size,
        settings.seed,
        loss_type=settings.loss_type,
        loss_kwargs=settings.objective_arguments(),
        attribution=settings.score,
        retain_weight=settings.retain_weight,
        max_length=None,
    )
