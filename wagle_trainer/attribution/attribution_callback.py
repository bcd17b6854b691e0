"""`WeightAttributionCallback`: makes any Transformers or TRL trainer a masked one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME
from transformers.utils import logging

from wagle_trainer.attribution.attribute import attribute
from wagle_trainer.attribution.config import AttributionConfig, as_attribution_config, load_mask
from wagle_trainer.attribution.scored_parameters import check_maskable, select_parameters
from wagle_trainer.attribution.starting_rate import why_too_low
from wagle_trainer.attribution.unreached_weights import UnreachedWeights
from wagle_trainer.data.dataset_checks import check_chat_template, check_eos_token, check_set, pad_token_id
from wagle_trainer.data.fingerprint import fingerprint
from wagle_trainer.data.length_sorted_batches import LengthSortedBatches, make_collator
from wagle_trainer.data.preparation import DatasetPreparation, as_prompt_completion, is_preference
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.engines.engine import current_engine
from wagle_trainer.masking import CompactUpdates, MaskedUpdates, WeightMask
from wagle_trainer.masking.attach_mask import attach_mask
from wagle_trainer.masking.compact_shards import has_shards
from wagle_trainer.masking.compact_updates import master_weights
from wagle_trainer.masking.masked_updates import innermost
from wagle_trainer.masking.resumed_mask import resumed_mask
from wagle_trainer.masking.update_checks import (
    check_forward_changes_no_weight,
    check_selects_weights,
    check_steps_outside_backward,
)
from wagle_trainer.models.causality import check_causal_once
from wagle_trainer.utils.keyed_digests import shareable, users_key

logger = logging.get_logger(__name__)


class WeightAttributionCallback(TrainerCallback):
    """Before training, score every weight and select the `density` share with the highest scores; during training, let
    only those change.

    Add it to the callbacks of a `transformers.Trainer`, `trl.SFTTrainer`, `trl.DPOTrainer`, ...: nothing else changes
    in the script. The mask is saved into every checkpoint, and read from there on resume.

    Args:
        forget_dataset, retain_dataset: sets in any TRL format, or tokenized. May be None where the score needs nothing
            of them.
        config: how to score and select.
        mask: a `WeightMask`, or where one is saved: then nothing is computed, and the sets may be None.
        compact_training: keep gradients, moments and float32 master values of the selected weights only (see
            `CompactUpdates`); by default up to density 0.1, where it is possible.
        qa_format: how the sets' questions and answers were written; saved beside the mask as `qa_format.json`.
        arguments: the keyword form: the fields of `AttributionConfig`, in place of `config`.

    Attributes:
        mask: the `WeightMask` in force, None before training begins.
        masks_gradients: whether the trainer calls `updates.mask_gradients()` after each backward pass (see `Engine`).
        saves_mask: whether the callback writes the mask into checkpoints; WagleTrainer does it by itself.
        data_parallel: returns the `DistributedDataParallel` around the model; WagleTrainer sets it.

    Example:
        >>> SFTTrainer(model, args, train_dataset=forget,
        ...            callbacks=[WeightAttributionCallback(forget_dataset=forget, retain_dataset=retain, density=0.05)])
        >>> config = AttributionConfig(score="snip", density=0.05)
        >>> callback = WeightAttributionCallback(forget, config=config)
    """

    def __init__(
        self,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        config: AttributionConfig | None = None,
        *,
        mask: WeightMask | str | os.PathLike[str] | None = None,
        compact_training: bool | None = None,
        qa_format: QAFormat | None = None,
        **arguments: Any,
    ):
        self.config = as_attribution_config(config, arguments)
        self.sets = {"forget": forget_dataset, "retain": retain_dataset}
        self.given = load_mask(mask)
        self.mask: WeightMask | None = None
        self.masks_gradients = False
        self.saves_mask = True
        self.resume_from: str | None = None
        self.updates: MaskedUpdates | CompactUpdates | None = None
        self.compact_training = compact_training
        self.qa_format = qa_format
        self.data_parallel: Callable[[], Any] | None = None
        self.wrapped: Callable[[], Any] | None = None
        self._last_updates: MaskedUpdates | CompactUpdates | None = None
        self._unreached: UnreachedWeights | None = None
        self._prepared: dict[str, Dataset] | None = None
        self._steps_before = 0

    def prepare(self, args: Any, model: nn.Module, processing_class: Any) -> None:
        """Tokenize the sets and refuse what cannot work, before any work is done. Called when the trainer is made.

        Args:
            args: the training arguments.
            model: the model that is going to be trained.
            processing_class: its tokenizer.

        Raises:
            ValueError: a missing, empty or unknown set; a pattern without match; a model or an engine that weight
                masks do not support; a model that is not a causal language model, unless the score reads no data; a
                mask for another model, or one that selects nothing.
        """
        users_key()  # raises for one that can be guessed
        self.check_engine()
        check_maskable(model)
        check_forward_changes_no_weight(model)
        if self.given is not None:
            check_selects_weights(self.given)
            self.given.check(model)
            return
        select_parameters(model, self.config.include, self.config.exclude)
        if self.config.earlier_mask is not None:
            self.config.earlier_mask.check(model)
        if not self.config.needs:  # the score reads no data: no tokenizer is needed, and any kind of model will do
            self._prepared = {}
            return
        check_causal_once(model)
        pad_token = pad_token_id(processing_class)
        preparation = DatasetPreparation(
            processing_class,
            max_length=getattr(args, "max_length", None),
            text_field=getattr(args, "dataset_text_field", "text"),
            num_proc=getattr(args, "dataset_num_proc", None),
            completion_only_loss=getattr(args, "completion_only_loss", None),
            assistant_only_loss=getattr(args, "assistant_only_loss", False),
            truncation_mode=getattr(args, "truncation_mode", "keep_start"),
        )
        prepared = {}
        for name in self.config.needs:
            dataset = self.sets[name]
            check_set(dataset, name, preparation.args.dataset_text_field)
            assert dataset is not None
            if is_preference(dataset):
                chosen = name == "retain" or self.config.attribution_loss != "nll"
                dataset = as_prompt_completion(dataset, "chosen" if chosen else "rejected")
            elif (
                name == "forget"
                and self.config.attribution_loss == "chosen_nll"
                and "input_ids" not in dataset.column_names
            ):
                raise ValueError(
                    'attribution_loss="chosen_nll" needs a forget set with a chosen answer: columns "prompt", '
                    f'"chosen", "rejected"; it has {", ".join(dataset.column_names)}.'
                )
            check_chat_template(dataset, name, processing_class)
            check_eos_token(dataset, name, processing_class)
            prepared[name] = preparation(dataset, name)
        self.collator = make_collator(pad_token)
        self._prepared = prepared

    def check_engine(self) -> None:
        """Raise ValueError if masked training does not work on the engine at hand."""
        current_engine().check(has_mask=self.given is not None, masks_gradients=self.masks_gradients)

    def on_init_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        self.prepare(args, model, processing_class)

    def on_train_begin(self, args, state, control, model=None, processing_class=None, optimizer=None, **kwargs):
        self.detach()  # from a run that was broken off, or is tried again with a smaller batch
        check_steps_outside_backward(model, innermost(optimizer))
        if state.global_step == 0 and state.is_world_process_zero:
            self._warn_of_small_steps(args)
        if state.global_step > 0 and self.mask is None:
            self.mask = self._from_checkpoint(args, state)
        elif self.mask is None:
            self.mask = self.given or self.compute(args, model, processing_class)
        _check_processes_agree("weight masks", self.mask.digest)
        self._unreached = UnreachedWeights(model, self.mask)
        self._last_updates = None
        self.updates = attach_mask(
            model,
            self.mask,
            optimizer,
            skip_frozen=_may_skip_frozen(args),
            compact=self.compact_training,
            data_parallel=self.data_parallel() if self.data_parallel is not None else None,
            saves_shards=self.masks_gradients,
            saved_state=self._saved_optimizer(args, state) if state.global_step > 0 else None,
        )
        info = self.mask.info
        effective = info.effective_density
        logger.info(
            f"Weight mask {self.mask.digest[:12]}: {self.mask.num_selected:,} of {self.mask.num_weights:,} weights may "
            f"change (density {self.mask.density:.4g}"
            + (f", {effective:.4g} of those with a gradient)." if effective is not None else ").")
            + (f" gamma={info.gamma_rule!r} is {info.gamma:.4g}." if info.gamma_rule else "")
            + (f" density={info.density_rule!r} is {info.requested_density}." if info.density_rule else "")
        )

    def _warn_of_small_steps(self, args: Any) -> None:
        """Warn before any work where the learning rate is one for all weights."""
        mask = self.mask or self.given
        density, score = (self.config.density, self.config.score) if mask is None else (mask.density, mask.info.score)
        # A density by rule is not known yet, and other optimizers have rates of other sizes.
        if isinstance(density, float) and "adamw" in args.optim:
            warning = why_too_low(args.learning_rate, density, score)
            if warning is not None:
                logger.warning(warning)

    def on_step_begin(self, args, state, control, **kwargs):
        self._steps_before = self.updates.steps if self.updates else 0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        # The trainer has clipped the model's own gradients, which are gone; WagleTrainer clips the compact ones.
        if isinstance(self.updates, CompactUpdates) and not self.masks_gradients:
            self.updates.clip(nn.utils.clip_grad_norm_, args.max_grad_norm or float("inf"))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if (
            isinstance(self.updates, CompactUpdates)
            and self.updates.grad_norm is not None
            and "grad_norm" in (logs or {})
        ):
            logs["grad_norm"] = state.log_history[-1]["grad_norm"] = float(self.updates.grad_norm)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if isinstance(self.updates, CompactUpdates):
            self.updates.zero_grad()  # also after a step that a gradient scaler has skipped
        if self._unreached is not None:
            if state.is_world_process_zero:
                self._unreached.warn()
            self._unreached.detach()
            self._unreached = None
        if self.updates is None or self.updates.steps > self._steps_before:
            return
        if not getattr(optimizer, "step_was_skipped", False):  # as fp16 scaling does after an overflow
            raise RuntimeError(
                "An optimizer step ran without the weight mask: this training engine bypasses the optimizer's hooks, "
                "and the run would have been silently unmasked."
            )

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.saves_mask and self.mask is not None and args.should_save and folder.is_dir():
            self.mask.save_pretrained(folder)
            if self.qa_format is not None:
                self.qa_format.save_pretrained(folder)

    def on_train_end(self, args, state, control, **kwargs):
        self.detach()

    def detach(self) -> None:
        """Take the mask off the model and its optimizer. Called when training ends."""
        if self.updates is not None:
            self.updates.detach()
            self._last_updates, self.updates = self.updates, None
        if self._unreached is not None:
            self._unreached.detach()
            self._unreached = None

    def master_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The float32 values of the selected weights: compact training's masters, or the model's own values.

        Args:
            model: the unwrapped model.

        Returns:
            parameter name -> float32 (selected weights,) in the order of their flat positions, on the CPU.

        Raises:
            ValueError: there is no mask yet.
        """
        if self.mask is None:
            raise ValueError("There is no mask yet, so no weight is selected: train first, or pass mask=.")
        return master_weights(model, self.mask, self.updates or self._last_updates)

    def compute(self, args: Any, model: nn.Module, processing_class: Any) -> WeightMask:
        """Score the weights of `model` as it is now, and select. Called when training begins.

        Args:
            args: the training arguments.
            model: the model, on its device.
            processing_class: its tokenizer.

        Raises:
            RuntimeError: the processes hold different data.
        """
        if self._prepared is None:  # the callback was added to a trainer that had been made before
            self.prepare(args, model, processing_class)
        assert self._prepared is not None
        samples = self.config.samples
        digests = {name: fingerprint(dataset) for name, dataset in self._prepared.items()}
        for name, digest in digests.items():
            _check_processes_agree(f"{name} sets", digest, shown=False)
        batches = {
            name: LengthSortedBatches(
                dataset,
                self.config.batch_size or args.per_device_train_batch_size,
                self.collator,
                rows=None if samples is None else range(min(samples, len(dataset))),
                process=args.process_index,
                num_processes=args.world_size,
            )
            for name, dataset in self._prepared.items()
        }
        mask = attribute(
            current_engine().scoring_model(model, self.wrapped() if self.wrapped is not None else None),
            batches.get("forget"),
            batches.get("retain"),
            self.config,
            across_processes=args.world_size > 1,
            progress=not args.disable_tqdm and args.process_index == 0,
        )
        forget, retain = (shareable(digests.get(name)) for name in ("forget", "retain"))
        mask.info = replace(mask.info, forget_digest=forget, retain_digest=retain)
        return mask

    def _checkpoints(self, args: Any, state: Any) -> list[str]:
        """Folders that the run may resume from, the likeliest first. Trainers do not tell callbacks which."""
        given = self.resume_from or args.resume_from_checkpoint
        return [
            *([given] if isinstance(given, str) else []),
            os.path.join(args.output_dir, f"checkpoint-{state.global_step}"),
        ]

    def _saved_optimizer(self, args: Any, state: Any) -> Path | None:
        folders = [Path(folder) for folder in self._checkpoints(args, state)]
        states = (folder if has_shards(folder) else folder / OPTIMIZER_NAME for folder in folders)
        return next((path for path in states if path.exists()), None)

    def _from_checkpoint(self, args: Any, state: Any) -> WeightMask:
        """The mask that the resumed run trained with."""
        candidates = self._checkpoints(args, state)
        return resumed_mask(candidates, state.global_step, self.given, self.config.requested_info())


def _check_processes_agree(what: str, digest: str, *, shown: bool = True) -> None:
    """Raise RuntimeError where processes hold different things; digests of sets are not shown, see `keyed_digests`."""
    if PartialState().num_processes == 1:
        return
    digests = gather_object([digest])
    if len(set(digests)) > 1:
        which = f" (digests {', '.join(d[:12] for d in digests)})" if shown else ""
        raise RuntimeError(
            f"The processes hold different {what}{which}: do they read the same files, in the same order, and the same model?"
        )


def _may_skip_frozen(args: Any) -> bool:
    """Whether frozen tensors may do without gradients: on one process, unless checkpointed blocks need inputs that
    require some."""
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return alone and not (args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
