"""`WagleTrainer`: TRL's `SFTTrainer` for unlearning, with a forget and a retain set."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import logging
from trl import SFTTrainer

from wagle_trainer.adapters.adapter import WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME
from wagle_trainer.adapters.adapter_checkpoints import (
    BESIDE_MODEL,
    AdapterCheckpoints,
    adapter_in,
    check_adapter_can_be_saved,
)
from wagle_trainer.adapters.lora import check_adapted_modules, check_same_modules
from wagle_trainer.data.length_sorted_batches import LengthSortedBatches
from wagle_trainer.data.pair_loader import pair_loader
from wagle_trainer.data.pairing import PairCollator, PairedDataset, PairSampler, num_counted
from wagle_trainer.data.preparation import prepare, prepare_by_its_own_format, target_counts
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.data.splits import check_chosen_answers, check_vocabulary
from wagle_trainer.engines.engine import current_engine
from wagle_trainer.engines.gradient_reach import GradientReach
from wagle_trainer.engines.sharding import full_norm
from wagle_trainer.evaluation.evaluation_callback import EvaluationCallback
from wagle_trainer.losses import LossInputs
from wagle_trainer.losses.objective import overrides
from wagle_trainer.losses.reference_outputs import ReferenceOutputs
from wagle_trainer.masking import MaskedUpdates, WeightMask
from wagle_trainer.masking.compact_adamw import CompactAdamW
from wagle_trainer.masking.compact_choice import use_compact_optimizer
from wagle_trainer.masking.compact_shards import has_shards, in_place_of_dense_state
from wagle_trainer.masking.compact_updates import CompactUpdates
from wagle_trainer.masking.gradient_check import GradientCheck, LossCheck
from wagle_trainer.models.causality import check_causal_once
from wagle_trainer.models.log_probs import TokenLogProbs, joint_token_log_probs, token_log_probs
from wagle_trainer.models.modes import without_dropout
from wagle_trainer.models.not_finite import cause_of_not_finite
from wagle_trainer.models.reference_log_probs import mean_answer_probability
from wagle_trainer.models.routers import router_losses
from wagle_trainer.reporting.end_of_run import end_of_run_sentences
from wagle_trainer.reporting.model_card import PAPER, ModelFacts, rewrite_model_card
from wagle_trainer.trainer_callbacks import BaseOfAdapter, EpochOfPairs, ForgettingSummary, References, StepEnd
from wagle_trainer.trainer_setup import UnlearningSetup
from wagle_trainer.utils.checkpointing_names import checkpointing_argument
from wagle_trainer.utils.complete_checkpoints import (
    begin_checkpoint,
    checkpoint_to_resume,
    last_complete_checkpoint,
    remove_leftovers,
)
from wagle_trainer.utils.keyed_digests import shareable
from wagle_trainer.utils.numbered_cpus import read_numbered_cpus
from wagle_trainer.utils.running_means import RunningMeans

logger = logging.get_logger(__name__)


class WagleTrainer(SFTTrainer):
    """
    Trainer for unlearning with weight attribution (WAGLE, arXiv 2410.17509): before training, every weight's influence
    on forgetting is scored against its influence on retaining; only the top `density` share may change, while an
    unlearning objective runs on pairs of a forget and a retain example.

    Takes the arguments of [`~trl.SFTTrainer`], with two sets in place of one. No second model is kept in memory: what
    the objectives need of the reference model, the one before training, is computed once, when training begins.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The model that is to forget.
        args ([`WagleConfig`], *optional*): Configuration; any other `TrainingArguments` are converted.
        forget_dataset, retain_dataset (`Dataset`): What to forget and what to keep, in any TRL format. A forget set in
            preference format holds in `rejected` what must be forgotten and in `chosen` what to say instead. Of `messages`
            every turn counts, as in TRL; with `assistant_only_loss` the assistant's; of `prompt` and `completion` the completion.
        train_dataset (`DatasetDict`, *optional*): Instead of the two: a mapping with the keys "forget" and "retain".
        eval_dataset (`Dataset` or `dict`, *optional*): Sets to evaluate, each on its own (`eval_forget_loss`, ...).
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; loaded with the model if not given.
        callbacks (`list`, *optional*): Callbacks of the Trainer.
        mask ([`WeightMask`] or path, *optional*): A mask to use as it is: then nothing is computed.
        qa_format ([`~wagle_trainer.data.QAFormat`], *optional*): How the sets' questions and answers were written. It is
            saved as `qa_format.json` beside model, adapter and checkpoints, and `EvaluationCallback` measures with it.
        refusals (`list[str]`, *optional*): Chosen answers for objectives that need them, when the forget set has
            none; by default the bundled sentences.
        kwargs: Everything else that [`~trl.SFTTrainer`] takes, such as `peft_config`. With
            `LoraConfig(target_modules="wagle")`, or another score, the base weights are scored first, and the Linear
            modules that hold most of the selected weights get the adapter (see [`~wagle_trainer.adapters.lora.lora_modules`]).

    Raises:
        ValueError, TypeError: a set that is missing, empty, in no known format, or whose answers `max_length` cuts off;
            a model, engine or mask that do not go together. All of it before any work is done.

    Example:
        >>> trainer = WagleTrainer(
        ...     model="path-or-hub-id",
        ...     args=WagleConfig(output_dir="out", loss_type="npo", attribution="wagle", density=0.8),
        ...     forget_dataset=forget, retain_dataset=retain,
        ... )
        >>> trainer.train(); trainer.save_model(); trainer.mask

    Attributes:
        lora_modules: names of the modules that a score chose for LoRA, highest share first; None otherwise.
        forgetting: after training, "before" and "after" -> split -> mean answer probability of its first `summary_rows`.
    """

    _tag_names = ["trl", "wagle", "unlearning"]  # noqa: RUF012 (as TRL declares it)
    _name = "WAGLE"
    _paper = PAPER
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the number of examples of the whole accumulated batch

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: TrainingArguments | None = None,
        *,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        train_dataset: DatasetDict | dict[str, Dataset] | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        mask: WeightMask | str | os.PathLike[str] | None = None,
        qa_format: QAFormat | None = None,
        refusals: Sequence[str] | None = None,
        formatting_func: Callable[[dict], str] | None = None,
        **kwargs: Any,
    ):
        setup = UnlearningSetup.from_arguments(
            model,
            args,
            forget_dataset=forget_dataset,
            retain_dataset=retain_dataset,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            mask=mask,
            refusals=refusals,
            formatting_func=formatting_func,
            peft_config=kwargs.get("peft_config"),
            compute_loss_func=kwargs.get("compute_loss_func"),
        )
        self.objective = setup.objective
        self.qa_format = qa_format
        if qa_format is not None and isinstance(setup.mask, str | os.PathLike):
            qa_format.check_saved(setup.mask, "The mask")
        self.lora_modules: list[str] | None = None
        model = setup.load_model(model, kwargs.pop("quantization_config", None))
        if setup.lora_score is not None:
            kwargs["peft_config"], self.lora_modules = setup.with_lora_modules(kwargs["peft_config"], model)
        with setup.for_sft_trainer(model) as arguments:
            super().__init__(**arguments, eval_dataset=eval_dataset, callbacks=callbacks, **kwargs)
        self._losses_of_step, self._in_training_step = LossCheck(), False
        self._reach: GradientReach | None = None
        self._filter_as_given: Callable[[], AbstractContextManager[None]] = nullcontext
        self.model_accepts_loss_kwargs = True  # says the same as `loss_is_scaled_for_ga` to Transformers before 5.19
        if self.lora_modules is not None:
            check_adapted_modules(self.model, self.lora_modules)
        self._set_up_pairs(setup)
        self._set_up_objective()
        self._set_up_mask(setup)
        self.forgetting: dict[str, dict[str, float]] = {}
        if self.args.summary_rows and current_engine().holds_full_weights:
            self.add_callback(ForgettingSummary(self._answer_probabilities, self._tell_forgetting))

    def _set_up_pairs(self, setup: UnlearningSetup) -> None:
        """Install the forget-retain pairs in place of TRL's training set."""
        check_causal_once(self.model)
        sets = {name: prepare(self, dataset, name, setup.formatting_func) for name, dataset in setup.sets.items()}
        check_chosen_answers(setup.sets, sets)
        check_vocabulary(sets, self.model)
        chosen = sets["chosen"] if "chosen" in self.objective.needs else None
        self.train_dataset = PairedDataset(sets["forget"], sets["retain"], chosen)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self._sampler = PairSampler(len(sets["forget"]), len(sets["retain"]), seed)
        self.data_collator: Any = PairCollator(self.data_collator)
        self.add_callback(EpochOfPairs(self._sampler))

    def _set_up_objective(self) -> None:
        """Prepare the losses and what provides their needs."""
        self.objective.check_engine()
        if "forget" in self.objective.splits:
            self.objective.forget.check_answers(target_counts(self.train_dataset.forget))
        self.objective.check_head(self.model)
        self._layers = self.objective.layers(self.model)
        self.references = ReferenceOutputs(
            self.objective,
            self._layers,
            dataset=self.train_dataset,
            sampler=self._sampler,
            collator=self.data_collator.collator,
            args=self.args,
        )
        self._means, self._retain_loss_of_step = RunningMeans(), RunningMeans()
        self._density_is_logged = False
        self._evaluation_means = RunningMeans()
        self.add_callback(References(self.compute_references))
        if overrides(self.objective.forget, "step_end"):
            self.add_callback(StepEnd(self.end_step))
        self.objective.forget.setup(self.processing_class, self.args.seed)

    def _set_up_mask(self, setup: UnlearningSetup) -> None:
        """Install the attribution, and what saves its adapter; refuse a model or an engine that cannot be masked."""
        self._attribution = setup.masked_attribution()
        if self._attribution is not None:
            self._attribution.masks_gradients, self._attribution.saves_mask = True, False
            self._attribution.data_parallel = self._data_parallel
            self._attribution.wrapped = lambda: self.model_wrapped
            # A choice of the optimizer's moments alone is one of dense gradients.
            chosen = self.args.compact_training is not None or self.args.compact_optimizer is None
            self._attribution.compact_training = self.args.compact_training if chosen else False
            self.add_callback(self._attribution)
            self._attribution.prepare(self.args, self.model, self.processing_class)
        self._adapter = AdapterCheckpoints()
        if self.args.save_adapter:
            check_adapter_can_be_saved(self._attribution is not None)
            self.add_callback(BaseOfAdapter(self._begin_adapter))

    def _begin_adapter(self) -> None:
        assert self.mask is not None
        self._adapter.begin(self.model, self.mask)

    @property
    def mask(self) -> WeightMask | None:
        """The weight mask in force; None before training begins, and when all weights are trained."""
        return self._attribution.mask if self._attribution is not None else None

    def compute_mask(self) -> WeightMask:
        """Compute the weight mask without training, for engines that cannot: save it and pass it on as `mask_path`.

        Raises:
            ValueError: no mask is wanted, or the engine shards the weights.
        """
        if self._attribution is None:
            raise ValueError("There is no mask to compute: attribution=None trains all weights.")
        if not (engine := current_engine()).holds_full_weights:
            raise ValueError(
                f"compute_mask needs full models, but {engine.name} shards them: run it on one process or with "
                "data parallelism."
            )
        if self.mask is None:
            self._attribution.mask = self._attribution.given or self._attribution.compute(
                self.args, self.model, self.processing_class
            )
        assert self.mask is not None
        return self.mask

    def master_weights(self) -> dict[str, Tensor]:
        """The float32 values of the selected weights.

        Compact training updates these, and a bfloat16 model holds their rounding. Without it, the model's own values.

        Returns:
            parameter name -> float32 (selected weights,) in the order of their flat positions, on the CPU.

        Raises:
            ValueError: there is no mask, or not yet.
        """
        if self._attribution is None:
            raise ValueError("There are no selected weights: attribution=None trains all of them.")
        return self._attribution.master_weights(self.model)

    def _data_parallel(self) -> DistributedDataParallel | None:
        return self.model_wrapped if isinstance(self.model_wrapped, DistributedDataParallel) else None

    # Data

    _prepare_dataset = prepare_by_its_own_format

    def get_train_dataloader(self) -> DataLoader:
        """Batches of forget-retain pairs; see `PairSampler` for their order."""
        loader = pair_loader(self.train_dataset, self._sampler, self.data_collator, self._train_batch_size, self.args)
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of one optimizer step and the number of forget examples in all of them, on all processes.

        Args:
            epoch_iterator: of batches.
            num_batches: batches of the step.
            device: where the number goes.
        """
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "forget" in batches[0]:
            num_items = torch.tensor(sum(map(num_counted, batches))).to(device, non_blocking=True)
            num_items = self.accelerator.reduce(num_items, "sum")
        return batches, num_items

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As `Trainer.floating_point_ops`, over the batches of all splits."""
        return sum(super(WagleTrainer, self).floating_point_ops(batch) for batch in _batches(inputs))

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """As `Trainer._track_num_input_tokens`, over the batches of all splits."""
        for batch in _batches(inputs):
            super()._track_num_input_tokens(batch)

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the unlearning objective on a batch of pairs; on an evaluation batch, the mean NLL per token.

        Both losses are means over examples, so that accumulated batches and several processes give what one large
        batch gives.

        Args:
            model: that is trained, wrapped by the engine.
            inputs: a batch of pairs, or of an evaluation set.
            return_outputs: also return the outputs.
            num_items_in_batch: forget examples of the accumulated batch, on all processes.
        """
        if "forget" not in inputs:
            return self._evaluation_loss(model, inputs, return_outputs)
        # SFTTrainer's: the model's own by default.
        coefficient = self.router_aux_loss_coef if self.aux_loss_enabled else 0.0
        collected: AbstractContextManager[list[Tensor]] = nullcontext([])
        if coefficient:
            collected = router_losses(model, required=self.args.router_aux_loss_coef is not None)
        reach = self._gradient_reach()
        with collected as aux_losses, nullcontext() if reach is None else reach.recording():
            outputs = self._forward(model, inputs)
        loss_inputs = LossInputs(
            outputs.get("forget"), outputs.get("chosen"), outputs.get("retain"), rows=inputs["forget"]["index"]
        )
        self.references.add_to(loss_inputs, inputs)
        losses, weights = self.objective.losses(loss_inputs), self.objective.weights()
        total = torch.zeros(len(inputs["forget"]["index"]), device=self.args.device)
        counted = slice(num_counted(inputs))  # none, where another process has the last pairs
        for name, values in losses.items():
            total = total + weights[name] * values
            self._means.add(name, values[counted])
        if "retain_loss" in losses and model.training and overrides(self.objective.forget, "step_end"):
            self._retain_loss_of_step.add("retain_loss", losses["retain_loss"][counted])
        if aux_losses:
            aux_loss = torch.stack(aux_losses).mean()
            total = total + coefficient * aux_loss
            self._means.add("aux_loss", aux_loss.expand(len(total))[counted])
        if num_items_in_batch is None:
            num_items_in_batch = len(total) * self.accelerator.num_processes
        self._losses_of_step.record(total.sum(), partial(self._why_not_finite, model, inputs, losses))
        if not self._in_training_step:
            self._losses_of_step.check()
        penalty = self.objective.forget.penalty(self.model, self.state.global_step / max(1, self.state.max_steps))
        if penalty is not None:
            total = total + penalty
            self._means.add("penalty", penalty.detach().expand(len(total))[counted])
        if reach is not None:
            self._note_reach(reach, total)
        if reach is not None and getattr(model, "require_backward_grad_sync", True):
            # All weights must have gradients: DistributedDataParallel waits for them, FSDP1 begins with the outermost unit.
            total = total + 0 * sum(output.sum().sum() for output in outputs.values())
        # Engines average over processes.
        loss = total[counted].sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _gradient_reach(self) -> GradientReach | None:
        """What is to watch the weights that the loss depends on, if it may depend on some only, and the engine hides it."""
        if not self._in_training_step or not self._layers or not current_engine().fills_missing_gradients:
            return None
        if self._reach is None:
            self._reach = GradientReach(self.model)
        return self._reach

    def _note_reach(self, reach: GradientReach, total: Tensor) -> None:
        reach.add(total)
        updates = self._attribution.updates if self._attribution is not None else None
        if isinstance(updates, MaskedUpdates):
            updates.leave_out(reach.unreached)

    def _evaluation_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Mean NLL per target token of a batch, as TRL defines it, but by the model's own head; logs two metrics."""
        answers = token_log_probs(model, inputs, top1=True, keep_logits=True)
        assert answers.is_top1 is not None
        number = answers.num_tokens().sum().clamp(min=1)
        log_p = answers.target_logits().log_softmax(-1)
        values = {
            "entropy": -(log_p.exp() * log_p).sum(),
            "mean_token_accuracy": (answers.is_top1 & answers.mask).sum().float(),
        }
        for name, value in values.items():
            self._evaluation_means.add(name, (value / number)[None])
        loss = -answers.sum().sum() / number
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{key: value for key, value in inputs.items() if key != "labels"})

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, TokenLogProbs]:
        """Run the splits that the objective needs through the model, and keep what it needs of them."""
        outputs = joint_token_log_probs(
            model,
            {split: inputs[split] for split in self.objective.splits},
            keep_logits=self.objective.keeping("logits"),
            layers=self._layers,
            statistics=model.training,
            agree=partial(self.accelerator.reduce, reduction="mean") if self.accelerator.num_processes > 1 else None,
        )
        for split in self._layers:
            states = outputs[split].states
            if model.training and states is not None and not states.requires_grad:
                raise ValueError(
                    f"The hidden states of the {split} set carry no gradient: train a weight at or below their layer, and "
                    f'use {checkpointing_argument()}_kwargs={{"use_reentrant": False}}.'
                )
        if model.training:
            self._add_token_statistics(outputs, slice(num_counted(inputs)))
        return outputs

    def _add_token_statistics(self, outputs: dict[str, TokenLogProbs], counted: slice) -> None:
        """Add the batch's mean entropy and token accuracy, as `SFTTrainer` logs them, and the accuracy of each split.

        Args:
            counted: of the batch's examples; a batch of fillers adds nothing.
        """
        number = {split: answers.mask.sum() for split, answers in outputs.items()}
        right = {split: answers.is_top1.sum() for split, answers in outputs.items() if answers.is_top1 is not None}
        entropy = sum(answers.entropy.sum() for answers in outputs.values() if answers.entropy is not None)
        total = torch.stack(list(number.values())).sum().clamp(min=1)
        self._means.add("entropy", (entropy / total)[None][counted])
        self._means.add("mean_token_accuracy", (torch.stack(list(right.values())).sum() / total)[None][counted])
        for split, count in right.items():
            self._means.add(f"{split}_mean_token_accuracy", (count / number[split].clamp(min=1))[None][counted])

    def _why_not_finite(self, model: nn.Module, inputs: dict[str, Any], losses: dict[str, Tensor]) -> str:
        forget_loss = losses.get("forget_loss")
        split = "retain" if forget_loss is None or bool(torch.isfinite(forget_loss.detach()).all()) else "forget"
        return (
            f"The {split} loss of step {self.state.global_step + 1} is not finite (rows "
            f"{inputs[split]['index'].tolist()} of the {split} set): {cause_of_not_finite(model)}. Training stops before the "
            "weights are changed; the last checkpoint is intact. A lower learning rate or float32 may help."
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward; gradients that no hook sees, as with FSDP1, are masked afterwards.

        Raises:
            FloatingPointError: a loss or a gradient is not finite. A mask looks at them by itself, in the optimizer step,
                and a gradient scaler skips the step where a gradient is not.
        """
        self._in_training_step = True
        try:
            loss = super().training_step(*args, **kwargs)
        finally:
            self._in_training_step = False
        if self.accelerator.sync_gradients:
            if self._reach is not None:
                self._reach.drop_gradients()
            self._check_step()
        return loss

    def _check_step(self) -> None:
        """Look at the losses and gradients of an optimizer step, or leave it to the mask."""
        updates = self._attribution.updates if self._attribution is not None else None
        if updates is not None:
            updates.mask_gradients()
            updates.gradient_check.losses = self._losses_of_step
        if self.accelerator.scaler is not None:
            self._losses_of_step.check()
        elif updates is None:
            names = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
            sharded = not current_engine().holds_full_weights
            check = GradientCheck(names, sharded=sharded, losses=self._losses_of_step)
            check.check(names, self.state.global_step + 1)

    @property
    def _compact_updates(self) -> CompactUpdates | None:
        updates = self._attribution.updates if self._attribution is not None else None
        return updates if isinstance(updates, CompactUpdates) else None

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As `Trainer._clip_grad_norm`; compact gradients are those of the optimizer and not of the model.

        A private method, as is `_get_grad_norm`; the logged norms in `tests/masking/test_compact_updates.py` watch both.
        """
        if self._compact_updates is None:
            return super()._clip_grad_norm(model)
        return self._compact_updates.clip(self.accelerator.clip_grad_norm_, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As `Trainer._get_grad_norm`, which measures where nothing is clipped."""
        if grad_norm is None and self._compact_updates is not None:
            grad_norm = self._compact_updates.clip(self.accelerator.clip_grad_norm_, float("inf"))
        return full_norm(super()._get_grad_norm(model, grad_norm))

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of both losses, entropy and token accuracy since the last log; once, the selected density.

        Args:
            logs: name -> number; gets the means.
            start_time: of the training.
        """
        if self.model.training and self._means:
            logs.update(self._means.take(self.accelerator))
            if overrides(self.objective.forget, "retain_factor"):
                logs["retain_factor"] = self.objective.forget.retain_factor()
            # A constant of the run: a resumed one has it in the log of its checkpoint.
            is_logged = self._density_is_logged or any("density" in entry for entry in self.state.log_history)
            self._density_is_logged = True
            if self.mask is not None and not is_logged:
                logs["density"] = self.mask.density
                if self.mask.info.effective_density is not None:
                    logs["effective_density"] = self.mask.info.effective_density
        if not self.model.training and self._evaluation_means:
            means = self._evaluation_means.take(self.accelerator)
            logs.update({f"eval_{name}": value for name, value in means.items()})
        super().log(logs, start_time)

    # Training and checkpoints

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        """As `Trainer.get_optimizer_cls_and_kwargs`; AdamW is the compact one where `compact_optimizer` says so."""
        optimizer_class, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
        if self._attribution is not None and use_compact_optimizer(self.args, self._attribution.given):
            optimizer_class = CompactAdamW
        return optimizer_class, kwargs

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """As `Trainer.train`. With `resume_from_checkpoint=True`, incomplete checkpoints of a
        killed run are skipped."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EvaluationCallback):
                callback.trainer = self  # callbacks do not get to know it, and only it can reach the trackers
        folder = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        if folder is None and (other := last_complete_checkpoint(self.args.output_dir)[0]) is not None:
            logger.warning(
                f"{other} is of an earlier run. This run overwrites the checkpoints of its own steps, and "
                "resume_from_checkpoint=True takes the one of the highest step: use another output_dir, or remove them."
            )
        if folder is not None and self.qa_format is not None:
            self.qa_format.check_saved(folder, "The checkpoint")
        if folder is not None and self.lora_modules is not None:
            check_same_modules(folder, self.model)
        if self._attribution is not None:
            self._attribution.check_engine()
            self._attribution.resume_from = folder
            if folder is not None:
                self._attribution.mask = None  # the checkpoint's is the one in force
        self.references.load(folder, self.model, self.accelerator)
        self._density_is_logged = False
        self._losses_of_step.clear()  # of a run that was broken off
        try:
            with without_dropout(self.model) if self.args.disable_dropout else nullcontext():
                return super().train(folder, trial, ignore_keys_for_eval)
        finally:  # a run that is broken off leaves no hooks and no frozen weights on the model
            self._reach = None
            if self._attribution is not None:
                self._attribution.detach()

    def end_step(self) -> None:
        """Tell the objective the mean retain loss of the optimizer step that has just been taken."""
        if self._retain_loss_of_step:
            retain_loss = self._retain_loss_of_step.take(self.accelerator)["retain_loss"]
            self.objective.forget.step_end(retain_loss, self.state.epoch or 0.0)

    def compute_references(self) -> None:
        """Compute what the objective needs of the model as it is now, unless it is known.

        Called when training begins: the engine is ready, and no weight has changed.
        """
        model = current_engine().forward_model(self.model, self.model_wrapped)
        self.references.compute_the_rest(model, self.accelerator)

    def _answer_probabilities(self) -> dict[str, float]:
        """Mean answer probability (geometric mean over tokens) of the first rows of the forget and the retain set."""
        found = {}
        for split in ("forget", "retain"):
            rows: Any = self.train_dataset.splits[split]
            rows = rows.select(range(min(len(rows), self.args.summary_rows)))
            batches = LengthSortedBatches(rows, self.args.per_device_train_batch_size, self.references.collator)
            model = current_engine().forward_model(self.model, self.model_wrapped)
            try:
                with self.accelerator.autocast():
                    found[split] = mean_answer_probability(model, batches, self.args.device)
            except FloatingPointError:  # the run itself says more of it
                return {}
        return found

    def _tell_forgetting(self, before: dict[str, float], after: dict[str, float]) -> None:
        """Keep and print how likely the answers were and are; warn where nothing was forgotten."""
        self.forgetting = {"before": before, "after": after}
        if self.is_world_process_zero() and before and after:
            base = self.model.config.name_or_path if hasattr(self.model, "config") else ""
            for sentence in end_of_run_sentences(before, after, base, self.args.output_dir):
                print(sentence, flush=True)
            if before["forget"] - after["forget"] < 0.05 * before["forget"]:
                logger.warning(
                    "Next to nothing was forgotten: raise learning_rate or density, or train for more steps. A small patch "
                    "needs larger steps than training all weights does."
                )
            elif after.get("retain", 0.0) < 0.9 * before.get("retain", 0.0):
                logger.warning(
                    "The retain answers became less likely, too: lower learning_rate, train for fewer steps, or raise "
                    "retain_weight."
                )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As `Trainer._save_optimizer_and_scheduler`; the compact state of sharded weights has files of its own."""
        updates = self._compact_updates
        with in_place_of_dense_state(save=None if updates is None else updates.save_shard):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As `Trainer._load_optimizer_and_scheduler`; compact state of sharded weights is read with the mask."""
        if self.args.device.type == "cpu":
            read_numbered_cpus()
        with in_place_of_dense_state(skip_loading=checkpoint is not None and has_shards(Path(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _save_checkpoint(self, model, trial):
        # The references first, so that a checkpoint that is complete has them.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            begin_checkpoint(folder)
            self.references.save(folder)
        self.accelerator.wait_for_everyone()  # other processes write into the same folder
        with self._filter_as_given():  # its upload saves the arguments once more
            super()._save_checkpoint(model, trial)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer._run_epoch`, but a run that is resumed at its last step takes no further one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # The filter waits for the device, to leave losses out of the logs that stop the run here.
        given = self.args.logging_nan_inf_filter
        try:
            self._filter_as_given = partial(self._loss_filter, given)
            with self._loss_filter(False):
                super()._run_epoch(*args, **kwargs)
        finally:
            self._filter_as_given = nullcontext

    @contextmanager
    def _loss_filter(self, on: bool) -> Iterator[None]:
        """Turn `logging_nan_inf_filter` on or off for a while."""
        before, self.args.logging_nan_inf_filter = self.args.logging_nan_inf_filter, on
        try:
            yield
        finally:
            self.args.logging_nan_inf_filter = before

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `SFTTrainer.evaluate`, with the user's `logging_nan_inf_filter` also while it trains."""
        with self._filter_as_given():
            return super().evaluate(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As `Trainer._save`; with `save_adapter`, the adapter in place of the model, or in a folder beside it."""
        with self._filter_as_given():  # the arguments are saved, too
            self._save_what_is_trained(output_dir, state_dict)

    def _save_what_is_trained(self, output_dir: str | None, state_dict: dict | None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self.qa_format is not None and self.args.should_save:
            self.qa_format.save_pretrained(folder)
            if self.args.save_adapter and self.args.save_full_model:
                self.qa_format.save_pretrained(folder / BESIDE_MODEL)
        if not self.args.save_adapter:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            adapter_folder = folder / BESIDE_MODEL if self.args.save_full_model else folder
            masters = self.master_weights() if self.args.adapter_masters else None
            self._adapter.save(adapter_folder, self.model, self.training_facts(), masters)
            if self.args.save_full_model:
                super()._save(output_dir, state_dict)
            else:
                self.processing_class.save_pretrained(folder)
                torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def training_facts(self) -> dict[str, Any]:
        """How the weights were trained, for people who get them: no text of any set, nor what tells it."""
        sets = {
            split: {"examples": len(dataset), "digest": shareable(self.train_dataset.fingerprints[split])}
            for split, dataset in self.train_dataset.splits.items()
        }
        return {
            "objective": self.args.loss_type,
            "objective_arguments": self.args.loss_kwargs,
            "retain_loss": self.objective.retain_type,
            "learning_rate": self.args.learning_rate,
            "steps": self.state.global_step,
            "sets": sets,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As `Trainer._load_from_checkpoint`; an adapter's values are put into the base model."""
        adapter = adapter_in(resume_from_checkpoint)
        if adapter is not None:
            self._adapter.load(adapter, self.model)
        elif self.args.save_adapter:
            raise ValueError(
                f"The checkpoint in {resume_from_checkpoint} holds no adapter: it was made without save_adapter=True. "
                "Resume without it, and make an adapter by wagle_trainer.adapters.diff(base, tuned)."
            )
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """As `Trainer._load_best_model`; an adapter's values are put into the model."""
        best = self.state.best_model_checkpoint
        adapter = None if best is None else adapter_in(best)
        if adapter is None:
            super()._load_best_model()
        else:
            self._adapter.load(adapter, self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`; the mask and the model card are saved beside the model, or beside its adapter."""
        super().save_model(output_dir, _internal_call)
        if self.mask is not None and self.args.should_save:
            only_adapter = self.args.save_adapter and not self.args.save_full_model
            bits_in = ADAPTER_WEIGHTS_NAME if only_adapter else None
            self.mask.save_pretrained(output_dir or self.args.output_dir, bits_in=bits_in)
        if not _internal_call:  # checkpoints and uploads write their own
            self.create_model_card()
            if output_dir is not None and self.args.should_save:
                folder, card = Path(output_dir), Path(self.args.output_dir) / "README.md"
                if folder.resolve() != Path(self.args.output_dir).resolve():
                    shutil.copyfile(card, folder / card.name)

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Write the model card: what this model is, how to use it, how it was made, what was measured, its limits.

        Args:
            model_name: its title; by default the name of the repository or of the output folder.
            args, kwargs: as for `SFTTrainer.create_model_card`.
        """
        super().create_model_card(model_name, *args, **kwargs)
        if not self.is_world_process_zero():
            return
        repo = self.args.hub_model_id or self.args.output_dir
        only_adapter = self.args.save_adapter and not self.args.save_full_model
        settings = {
            "objective": self.args.loss_type,
            "arguments of the objective": json.dumps(self.args.loss_kwargs) if self.args.loss_kwargs else None,
            "retain loss": self.objective.retain_type,
            "forget / retain weight": f"{self.args.forget_weight} / {self.args.retain_weight}",
            "forget / retain examples": f"{len(self.train_dataset)} / {len(self.train_dataset.retain)}",
            "learning rate": self.args.learning_rate,
            "steps": self.state.global_step or None,
            "LoRA modules": None if self.lora_modules is None else ", ".join(self.lora_modules),
        }
        facts = ModelFacts(
            model_name or Path(repo).name,
            repo,
            self.model.config.name_or_path or None,
            "adapter" if only_adapter else "lora" if is_peft_model(self.model) else "model",
            chat=getattr(self.processing_class, "chat_template", None) is not None,
            settings=settings,
            mask=self.mask,
            log=self.state.log_history,
            evaluations=self._evaluations(),
        )
        rewrite_model_card(Path(self.args.output_dir) / "README.md", facts)

    def _evaluations(self) -> dict[str, dict[str, Any]]:
        """The first and the last evaluation of an `EvaluationCallback`, by step."""
        histories = [c.history for c in self.callback_handler.callbacks if isinstance(c, EvaluationCallback)]
        return {
            f"step {h['step']}": h["metrics"] for history in histories if history for h in (history[0], history[-1])
        }


def _batches(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The batches of all splits in a batch of pairs; a batch of anything else as it is."""
    return list(inputs.values()) if "forget" in inputs else [inputs]
