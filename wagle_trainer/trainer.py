"""`WagleTrainer`: TRL's `SFTTrainer` for unlearning, with a forget and a retain set."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoProcessor, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import seed_worker
from transformers.utils import logging
from trl import SFTTrainer

from wagle_trainer.adapters.adapter import WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME
from wagle_trainer.adapters.checkpoints import BESIDE_MODEL, AdapterCheckpoints, adapter_in
from wagle_trainer.attribution.attribute import select_parameters
from wagle_trainer.callback import WeightAttributionCallback, pad_token_id
from wagle_trainer.checkpoints import is_complete, last_complete_checkpoint
from wagle_trainer.config import WagleConfig
from wagle_trainer.data.batching import LengthSortedBatches
from wagle_trainer.data.pairing import ROLES, PairCollator, PairedDataset, PairSampler
from wagle_trainer.data.preparation import (
    as_prompt_completion,
    check_chat_template,
    check_set,
    is_preference,
    prepare,
    prepare_by_its_own_format,
    with_refusals,
)
from wagle_trainer.data.refusals import REFUSALS, refusal_for
from wagle_trainer.engines import WHOLE, engine, is_deepspeed, shards_forward
from wagle_trainer.evaluation.callback import EvaluationCallback
from wagle_trainer.files import write_atomically
from wagle_trainer.likelihood import TokenLogProbs, joint_token_log_probs
from wagle_trainer.lora import (
    check_same_modules,
    check_whole,
    linear_weights,
    load_base,
    lora_modules,
    score_that_chooses,
    with_modules,
)
from wagle_trainer.losses import Signals, UnlearningLoss, get_loss
from wagle_trainer.losses.base import NEEDS, example_of
from wagle_trainer.losses.retain import embedding_difference, js_to_reference, kl_to_reference, nll
from wagle_trainer.masking import WeightMask
from wagle_trainer.masking.flat import FSDP1MaskedUpdates
from wagle_trainer.masking.optim import CompactAdamW
from wagle_trainer.model_card import PAPER, add_adapter_section, add_unlearning_section
from wagle_trainer.reference import (
    ReferenceHead,
    ReferenceStates,
    align,
    decoder_layer,
    fingerprint,
    first_not_finite,
    reference_log_probs,
)

logger = logging.get_logger(__name__)

REFERENCE_NAME = "reference_log_probs.safetensors"
RETAIN_SETTINGS = ("retain_loss", "retain_layer")  # of `loss_kwargs`; all else goes to the objective


class WagleTrainer(SFTTrainer):
    """
    Trainer for unlearning with weight attribution (WAGLE, arXiv 2410.17509): before training, every weight's influence
    on forgetting is scored against its influence on retaining; only the top `density` share may change, while an
    unlearning objective runs on pairs of a forget and a retain example.

    Takes the arguments of [`~trl.SFTTrainer`], with two sets in place of one. No second model is kept in memory: what
    the objectives need of the model before unlearning is computed once, when training begins.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The model that is to forget.
        args ([`WagleConfig`], *optional*): Configuration; any other `TrainingArguments` are converted.
        forget_dataset, retain_dataset (`Dataset`): What to forget and what to keep, in any TRL format. A forget set in
            preference format holds in `rejected` what must be forgotten and in `chosen` what to say instead.
        train_dataset (`DatasetDict`, *optional*): Instead of the two: a mapping with the keys "forget" and "retain".
        eval_dataset (`Dataset` or `dict`, *optional*): Sets to evaluate, each on its own (`eval_forget_loss`, ...).
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; loaded with the model if not given.
        callbacks (`list`, *optional*): Callbacks of the Trainer.
        mask ([`WeightMask`] or path, *optional*): A mask to use as it is: then nothing is computed.
        refusals (`list[str]`, *optional*): Preferred answers for objectives that need them, when the forget set has
            none; by default the bundled sentences.
        kwargs: Everything else that [`~trl.SFTTrainer`] takes, such as `peft_config`. With
            `LoraConfig(target_modules="wagle")`, or another score, the base weights are scored first, and the Linear
            modules that hold most of the selected weights get the adapter (see [`~wagle_trainer.lora.lora_modules`]).

    Raises:
        ValueError, TypeError: a set that is missing, empty, in no known format, or whose answers `max_length` cuts off;
            a model, engine or mask that do not go together. All of it before any work is done.

    Example:
        >>> trainer = WagleTrainer(                                                       # doctest: +SKIP
        ...     model="path-or-hub-id",
        ...     args=WagleConfig(output_dir="out", loss_type="npo", attribution="wagle", density=0.8),
        ...     forget_dataset=forget, retain_dataset=retain,
        ... )
        >>> trainer.train(); trainer.save_model(); trainer.mask                           # doctest: +SKIP

    Attributes:
        lora_modules: names of the modules that a score chose for LoRA, highest share first; None otherwise.
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
        refusals: Sequence[str] | None = None,
        formatting_func: Callable[[dict], str] | None = None,
        **kwargs: Any,
    ):
        config = _as_wagle_config(args, model)
        loss_kwargs: dict[str, Any] = dict(config.loss_kwargs)  # type: ignore[arg-type]
        self.loss = _make_loss(config.loss_type, loss_kwargs)
        self.retain_loss = loss_kwargs.get("retain_loss", self.loss.retain_loss)
        self.retain_layer = loss_kwargs.get("retain_layer", self.loss.layer)
        if (not self.loss.needs or _overrides(self.loss, "step_end")) and (
            self.retain_loss is None or config.retain_weight == 0
        ):
            raise ValueError(
                f"loss_type={config.loss_type!r} is nothing without its retain loss: set a retain_loss and a retain_weight."
            )
        forget, retain = _split(train_dataset, forget_dataset, retain_dataset)
        if processing_class is None:
            processing_class = _load_processing_class(model, config)
        for name, dataset in (("forget", forget), ("retain", retain)):
            check_set(dataset, name, config.dataset_text_field, formatting_func)
            if config.chat_template_path is None:
                check_chat_template(dataset, name, processing_class)
        for name, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}).items():
            if isinstance(dataset, Dataset):
                check_set(dataset, f"{name} evaluation", config.dataset_text_field, formatting_func)
        assert forget is not None and retain is not None
        preferred = None
        if is_preference(forget):
            forget, preferred = as_prompt_completion(forget, "rejected"), as_prompt_completion(forget, "chosen")
        elif "preferred" in self.loss.needs or config.attribution_loss == "chosen_nll":
            if refusals is None and not self.loss.refusals_will_do and "preferred" in self.loss.needs:
                raise ValueError(
                    f"loss_type={config.loss_type!r} needs other answers of your own for the forget set. Give it as\n"
                    '  {"prompt": ..., "chosen": a plausible other answer, "rejected": what to forget}\n'
                    f"It has the columns {', '.join(forget.column_names)}. For refusals, use loss_type='dpo'."
                )
            if refusals is None:
                logger.info("The forget set has no preferred answers: the bundled refusals are used.")
            sentences = REFUSALS if refusals is None else tuple(refusals)
            preferred = with_refusals(forget, lambda row: refusal_for(row, config.seed, sentences))
        if is_preference(retain):
            retain = as_prompt_completion(retain, "chosen")
        pad_token_id(processing_class)
        sets = {"forget": forget, "retain": retain, **({"preferred": preferred} if preferred is not None else {})}
        self.lora_modules: list[str] | None = None
        score = score_that_chooses(kwargs.get("peft_config"))
        if score is not None:
            if mask is not None or config.mask_path is not None or config.attribution is not None:
                raise ValueError(
                    f"LoraConfig(target_modules={score!r}) scores the base weights to choose modules for LoRA; a weight mask "
                    "on top of it is not possible: set attribution=None and give no mask. To choose by a mask that you "
                    "have, use target_modules=wagle_trainer.lora.lora_modules(mask, model)."
                )
            model = load_base(model, config, kwargs.get("quantization_config"))
            self.lora_modules = self._choose_lora_modules(score, model, config, sets, processing_class)
            kwargs["peft_config"] = with_modules(kwargs["peft_config"], self.lora_modules)

        loss_type, config.loss_type = config.loss_type, "nll"  # SFTTrainer knows no other; it is back right after
        init_kwargs = config.model_init_kwargs
        if score is not None:  # the model is loaded: else TRL would warn that they are ignored
            config.model_init_kwargs = None
        try:
            super().__init__(
                model=model,
                args=config,
                # TRL learns the format from one row; the sets are prepared below, where cut-off answers are refused.
                train_dataset=forget.select(range(1)),
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                formatting_func=formatting_func,
                **kwargs,
            )
        finally:
            config.loss_type, config.model_init_kwargs = loss_type, init_kwargs

        sets = {name: prepare(self, dataset, name, formatting_func) for name, dataset in sets.items()}
        if "preferred" in sets and len(sets["preferred"]) != len(sets["forget"]):
            raise ValueError(
                f"{len(sets['forget'])} forget answers but {len(sets['preferred'])} preferred ones have label tokens: "
                "take the examples out of the forget set that have an empty answer."
            )
        self.train_dataset = PairedDataset(
            sets["forget"], sets["retain"], sets["preferred"] if "preferred" in self.loss.needs else None
        )
        seed = config.data_seed if config.data_seed is not None else config.seed
        self._sampler = PairSampler(len(sets["forget"]), len(sets["retain"]), seed)
        self._collator: Any = self.data_collator  # type: ignore[has-type]
        self.data_collator = PairCollator(self._collator)
        self.add_callback(_EpochOfPairs(self._sampler))
        self.add_callback(_References(self))
        if _overrides(self.loss, "step_end"):
            self.add_callback(_StepEnd(self))
        self._references: dict[str, Tensor] = {}  # role -> (examples, longest answer) log-probabilities, before
        self._reference_heads: dict[str, ReferenceHead] = {}
        self._reference_states: dict[str, ReferenceStates] = {}
        self._step_metrics: dict[str, list[Tensor]] = defaultdict(list)
        self._retain_losses_of_step: list[Tensor] = []
        self._check_engine()
        self._layers = self._find_layers()
        self.loss.setup(self.processing_class, config.seed)
        mask = mask if mask is not None else config.mask_path
        self._attribution = None
        if mask is not None or config.attribution is not None:
            self._attribution = self._attribution_callback(config, config.attribution or "wagle", sets, mask=mask)
        if self._attribution is not None:
            self._attribution.masks_gradients = True
            self.add_callback(self._attribution)
            self._attribution.prepare(config, self.model, self.processing_class)
        self._adapter = AdapterCheckpoints()
        if config.save_adapter:
            self._check_adapter()
            self.add_callback(_BaseOfAdapter(self))

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
        if engine() not in WHOLE:
            raise ValueError(
                f"compute_mask needs whole models, but {engine().value} shards them: run it on one process or with "
                "data parallelism."
            )
        if self.mask is None:
            self._attribution.mask = self._attribution.given or self._attribution.compute(
                self.args, self.model, self.processing_class
            )
        assert self.mask is not None
        return self.mask

    def _check_engine(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process would train with torch.nn.DataParallel, which cuts batches of "
                "pairs apart. Start with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
            )
        if engine() in WHOLE:
            return
        if self.retain_loss in ("kl", "js", "embed_diff"):
            raise ValueError(
                f"retain_loss={self.retain_loss!r} needs the {'layers' if self.retain_loss == 'embed_diff' else 'head'} in "
                f"one piece, but {engine().value} shards them. Use retain_loss='nll', or data parallelism."
            )
        whole = {"forget_reference_logits", "forget_states", "forget_reference_states"} & self.loss.needs
        if whole or _overrides(self.loss, "penalty"):
            raise ValueError(
                f"loss_type={self.args.loss_type!r} needs {'hidden states or logits' if whole else 'the weights'} of a "
                f"model in one piece, but {engine().value} shards it. Use another objective, or data parallelism."
            )

    def _check_adapter(self) -> None:
        if self._attribution is None:
            raise ValueError(
                "save_adapter=True saves the weights that a mask selects, and attribution=None trains all of them. Save the "
                "model, and make an adapter of what has changed by wagle_trainer.adapters.diff(base, tuned)."
            )
        if engine() not in WHOLE:
            raise ValueError(
                f"save_adapter=True does not work with {engine().value}, which shards the weights. Train on one process or "
                "with data parallelism; or save the model, and make an adapter by wagle_trainer.adapters.diff(base, tuned)."
            )

    def _find_layers(self) -> dict[str, nn.Module]:
        """role -> the layer whose hidden states are needed."""
        layers = {}
        if "forget_states" in self.loss.needs:
            assert self.loss.layer is not None
            layers["forget"] = decoder_layer(self.model, self.loss.layer, f"loss_type={self.args.loss_type!r}")
        if self.retain_loss == "embed_diff":
            if self.retain_layer is None:
                raise ValueError(
                    'retain_loss="embed_diff" needs a layer. Say which, counted from 0:\n'
                    '  loss_kwargs={"retain_loss": "embed_diff", "retain_layer": 7}'
                )
            layers["retain"] = decoder_layer(self.model, self.retain_layer, "retain_loss='embed_diff'")
        return layers

    def _attribution_callback(
        self, config: WagleConfig, score: str, sets: dict[str, Dataset], **changes: Any
    ) -> WeightAttributionCallback:
        chosen = config.attribution_loss == "chosen_nll" or (
            config.attribution_loss == "auto" and "preferred" in self.loss.needs and "forget" not in self.loss.needs
        )
        settings = {
            "score": score,
            "score_kwargs": config.attribution_kwargs,
            "density": config.density,
            "gamma": config.attribution_gamma,
            "scope": config.attribution_scope,
            "include": config.attribution_include,
            "exclude": config.attribution_exclude,
            "exclude_mask": config.attribution_exclude_mask,
            "samples": config.attribution_samples,
            "batch_size": config.attribution_batch_size,
            "dtype": config.attribution_dtype,
            "offload": config.attribution_offload,
            "seed": config.seed,
        }
        return WeightAttributionCallback(
            sets["preferred" if chosen else "forget"], sets["retain"], **(settings | changes)
        )

    def _choose_lora_modules(
        self, score: str, model: nn.Module, config: WagleConfig, sets: dict[str, Dataset], processing_class: Any
    ) -> list[str]:
        """Score the Linear weights of the base, before TRL puts the adapter around it."""
        if config.attribution_scope != "global":
            raise ValueError(
                f"target_modules={score!r} compares modules with each other: attribution_scope must be 'global', not "
                f"{config.attribution_scope!r}, which selects the same share of each."
            )
        check_whole(config)
        names = select_parameters(model, config.attribution_include, config.attribution_exclude)
        include = [f"^{re.escape(name)}$" for name in linear_weights(model).values() if name in names]
        if len(include) < (config.lora_modules or 1):
            raise ValueError(
                f"There are {len(include)} Linear modules to choose from for LoRA (attribution_include and "
                f"attribution_exclude count, the output embeddings are none); lora_modules={config.lora_modules}."
            )
        callback = self._attribution_callback(config, score, sets, include=include, exclude=None)
        callback.prepare(config, model, processing_class)
        if not hasattr(model, "hf_device_map"):
            model.to(config.device)
        mask = callback.compute(config, model, processing_class)
        modules = lora_modules(mask, model, config.lora_modules)
        share = {name.removesuffix(".weight"): entry["density"] for name, entry in mask.summary()["tensor"].items()}
        logger.info(
            f"LoRA adapts {len(modules)} of {len(include)} Linear modules, chosen by the score {score!r}: "
            + ", ".join(f"{module} ({share[module]:.4g})" for module in modules)
            + f". In brackets the share of selected weights; it is {mask.density:.4g} over all of them."
        )
        return modules

    # Data

    _prepare_dataset = prepare_by_its_own_format

    def get_train_dataloader(self) -> DataLoader:
        """Batches of pairs; see `PairSampler` for their order."""
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            sampler=self._sampler,
            collate_fn=self.data_collator,
            drop_last=self.args.dataloader_drop_last,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=_SeedWorker(workers, self.args.process_index) if workers else None,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of one optimizer step and the number of forget examples in all of them, on all processes."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "forget" in batches[0]:
            num_items = torch.tensor(sum(len(batch["forget"]["index"]) for batch in batches), device=device)
            num_items = self.accelerator.reduce(num_items, "sum")
        return batches, num_items

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of all halves of a batch of pairs."""
        halves = inputs.values() if "forget" in inputs else [inputs]
        return sum(super(WagleTrainer, self).floating_point_ops(half) for half in halves)

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The unlearning objective on a batch of pairs; on an evaluation batch, TRL's mean NLL per token.

        Both losses are means over examples, so that accumulated batches and several processes give what one large
        batch gives.
        """
        if "forget" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        roles = [role for role in ROLES if role in self.loss.needs]
        retain = self.retain_loss is not None and self.args.retain_weight != 0
        logits = (["forget"] if "forget_logits" in self.loss.needs else []) + list(self._reference_heads)
        parallel = self.accelerator.num_processes > 1
        log_probs = joint_token_log_probs(
            model,
            {role: inputs[role] for role in (*roles, *(["retain"] if retain else []))},
            keep_logits=logits,
            layers=self._layers,
            agree=partial(self.accelerator.reduce, reduction="mean") if parallel else None,
        )
        for role in self._layers.keys() & log_probs.keys():
            states = log_probs[role].states
            if model.training and states is not None and not states.requires_grad:
                raise ValueError(
                    f"The hidden states of the {role} set carry no gradient: train a weight at or below their layer, and "
                    'use gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
        total = torch.zeros(len(inputs["forget"]["index"]), device=self.args.device)
        forget_loss = None
        if self.loss.needs:
            forget_loss = self.loss.forget_loss(self._signals(log_probs, inputs))
            total = total + self.args.forget_weight * forget_loss
            self._record("forget_loss", forget_loss)
        if retain:
            retain_loss = self._compute_retain_loss(log_probs["retain"], inputs["retain"])
            total = total + self.args.retain_weight * self.loss.retain_factor() * retain_loss
            self._record("retain_loss", retain_loss)
            if model.training and _overrides(self.loss, "step_end"):
                self._retain_losses_of_step.append(_total_and_count(retain_loss))
        if parallel and self._layers:  # all weights must have gradients, or DistributedDataParallel waits for them
            total = total + 0 * sum(part.sum().sum() for part in log_probs.values())
        if num_items_in_batch is None:
            num_items_in_batch = len(total) * self.accelerator.num_processes
        if not bool(torch.isfinite(total.detach()).all()):  # no further synchronization: Trainer asks this, too
            raise FloatingPointError(self._why_not_finite(model, inputs, forget_loss))
        penalty = self.loss.penalty(self.model, self.state.global_step / max(1, self.state.max_steps))
        if penalty is not None:
            total = total + penalty
            self._record("penalty", penalty.detach().expand(len(total)))
        loss = total.sum() / num_items_in_batch * self.accelerator.num_processes  # engines average over processes
        return (loss, {}) if return_outputs else loss

    def _signals(self, log_probs: dict[str, TokenLogProbs], inputs: dict[str, Any]) -> Signals:
        signals = Signals(log_probs.get("forget"), log_probs.get("preferred"), rows=inputs["forget"]["index"])
        for role, values in self._references.items():
            reference = values[inputs[role]["index"].cpu()].to(self.args.device)
            setattr(signals, f"{role}_reference", reference.sum(-1))
            setattr(signals, f"{role}_reference_tokens", align(reference, log_probs[role].mask))
        rows, device = inputs["forget"]["index"].tolist(), self.args.device
        if "forget" in self._reference_heads:
            signals.forget_reference_logits = self._reference_heads["forget"].logits(rows, device)
        if "forget" in self._reference_states:
            signals.forget_reference_states = self._reference_states["forget"].states(rows, device)
        return signals

    def _why_not_finite(self, model: nn.Module, inputs: dict[str, Any], forget_loss: Tensor | None) -> str:
        half = "retain" if forget_loss is None or bool(torch.isfinite(forget_loss.detach()).all()) else "forget"
        return (
            f"The {half} loss of step {self.state.global_step + 1} is not finite (rows "
            f"{inputs[half]['index'].tolist()} of the {half} set): {first_not_finite(model)}. Training stops before the "
            "weights are changed; the last checkpoint is intact. A lower learning rate or float32 may help."
        )

    def _compute_retain_loss(self, retain: TokenLogProbs, batch: dict[str, Tensor]) -> Tensor:
        rows, device = batch["index"].tolist(), batch["input_ids"].device
        if self.retain_loss == "embed_diff":
            return embedding_difference(retain, self._reference_states["retain"].states(rows, device))
        if self.retain_loss == "nll":
            return nll(retain)
        divergence = kl_to_reference if self.retain_loss == "kl" else js_to_reference
        return divergence(retain, self._reference_heads["retain"].logits(rows, device))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward; with FSDP1, where no hook sees them, gradients are masked afterwards."""
        loss = super().training_step(*args, **kwargs)
        updates = self._attribution.updates if self._attribution is not None else None
        if isinstance(updates, FSDP1MaskedUpdates) and self.accelerator.sync_gradients:
            updates.mask_gradients()
        return loss

    # Logging

    def _record(self, name: str, per_example: Tensor) -> None:
        self._step_metrics[name].append(_total_and_count(per_example))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of both losses since the last log, and the selected density."""
        if self.model.training and self._step_metrics:
            totals = {name: torch.stack(values).sum(0) for name, values in self._step_metrics.items()}
            self._step_metrics.clear()
            totals = self.accelerator.reduce(totals, "sum")
            logs.update({name: (total / count).item() for name, (total, count) in totals.items()})
            if _overrides(self.loss, "retain_factor"):
                logs["retain_factor"] = self.loss.retain_factor()
            if self.mask is not None:
                logs["density"] = self.mask.density
                if self.mask.info.effective_density is not None:
                    logs["effective_density"] = self.mask.info.effective_density
        super().log(logs, start_time)

    # Training and checkpoints

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        """As `Trainer.get_optimizer_cls_and_kwargs`; AdamW is the compact one where `compact_optimizer` says so."""
        optimizer_class, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
        return (CompactAdamW if self._use_compact_optimizer() else optimizer_class), kwargs

    def _use_compact_optimizer(self) -> bool:
        if self._attribution is None or self.args.compact_optimizer is False:
            return False
        known_optim = self.args.optim in ("adamw_torch", "adamw_torch_fused")
        if self.args.compact_optimizer is None:
            given = self._attribution.given
            density = self.args.density if given is None else given.density
            # A density chosen by rule is not known yet, when the optimizer is made.
            return not isinstance(density, str) and density <= 0.5 and known_optim and engine() in WHOLE
        if not known_optim:
            raise ValueError(
                f"compact_optimizer=True needs optim='adamw_torch_fused' or 'adamw_torch', not {self.args.optim.value!r}."
            )
        if engine() not in WHOLE:
            raise ValueError(
                f"compact_optimizer=True does not work with {engine().value}, which shards the optimizer's state itself: "
                "leave it out, or train on one process or with data parallelism."
            )
        return True

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """As `Trainer.train`. With `resume_from_checkpoint=True`, checkpoints that a killed run left half-written are
        passed over."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EvaluationCallback):
                callback.trainer = self  # callbacks do not get to know it, and only it can reach the trackers
        folder = self._checkpoint_to_resume(resume_from_checkpoint)
        if folder is not None and self.lora_modules is not None:
            check_same_modules(folder, self.model)
        if self._attribution is not None:
            self._attribution.check_engine()
            self._attribution.resume_from = folder
            if folder is not None:
                self._attribution.mask = None  # the checkpoint's is the one in force
        self._load_references(folder)
        return super().train(folder, trial, ignore_keys_for_eval)

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        if isinstance(wanted, str):
            if not is_complete(wanted):
                raise ValueError(
                    f"{wanted} is not a complete checkpoint: its trainer_state.json is missing or cut off."
                )
            return wanted
        folder, skipped = last_complete_checkpoint(self.args.output_dir)
        if skipped:
            logger.warning(f"Passing over incomplete checkpoints: {', '.join(skipped)}.")
        if folder is None:
            raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} to resume from.")
        return folder

    def _load_references(self, resume_folder: str | None) -> None:
        """Values of the model before unlearning. On resume those of the checkpoint count; the model that this trainer
        was made with is needed again for logits and hidden states only, before the trained weights take its place, and is
        checked to be the same one."""
        saved: dict[str, Tensor] = {}
        if resume_folder is not None:
            saved = self._read_references(resume_folder)
            self._references = {role: saved[role] for role in ("forget", "preferred") if role in saved}
            state = {name: saved[f"loss.{name}"] for name in self.loss.state() if f"loss.{name}" in saved}
            missing = [role for role in self._roles_with_reference if role not in self._references]
            if missing or len(state) < len(self.loss.state()):
                raise ValueError(
                    f"The checkpoint in {resume_folder} does not hold what the loss {self.args.loss_type!r} needs of "
                    f"the model before unlearning: it was trained with another loss. Resume with that one, or start a "
                    "new run."
                )
            self.loss.load_state(state)
        objective, retain = f"loss_type={self.args.loss_type!r}", f"retain_loss={self.retain_loss!r}"
        if "forget_reference_logits" in self.loss.needs:
            self._add_reference_head("forget", objective, "Use another objective")
        if self.retain_loss in ("kl", "js"):
            self._add_reference_head("retain", retain, "Use retain_loss='nll'")
        if "forget_reference_states" in self.loss.needs:
            self._add_reference_states("forget", objective)
        if self.retain_loss == "embed_diff":
            self._add_reference_states("retain", retain)
        for role, before in self._models_before.items():
            if f"{role}_before" in saved:
                before.check(saved[f"{role}_before"])

    @property
    def _models_before(self) -> dict[str, ReferenceHead | ReferenceStates]:
        return {**self._reference_heads, **self._reference_states}

    def _add_reference_head(self, role: str, what: str, instead: str) -> None:
        if role not in self._reference_heads:
            with self.accelerator.autocast():
                batches, device = self._batches_met(role), next(self.model.parameters()).device
                self._reference_heads[role] = ReferenceHead(self.model, batches, device, what, instead)

    def _add_reference_states(self, role: str, what: str) -> None:
        if role not in self._reference_states:
            with self.accelerator.autocast():
                batches, device = self._batches_met(role), next(self.model.parameters()).device
                self._reference_states[role] = ReferenceStates(self.model, self._layers[role], batches, device, what)

    def _batches_met(self, role: str) -> LengthSortedBatches:
        """The examples of a set that the run will meet; all of them on every process."""
        pairs = [pair for epoch in self._epochs() for pair in self._sampler.pairs(epoch)]
        rows = sorted({pair[("forget", "retain").index(role)] for pair in pairs})
        return self._batches(getattr(self.train_dataset, role), rows, share=False)

    @property
    def _roles_with_reference(self) -> list[str]:
        return [role for role in ("forget", "preferred") if {role, "reference"} <= self.loss.needs]

    def end_step(self) -> None:
        """Tell the objective the mean retain loss of the optimizer step that has just been taken."""
        if self._retain_losses_of_step:
            total, count = self.accelerator.reduce(torch.stack(self._retain_losses_of_step).sum(0), "sum").tolist()
            self._retain_losses_of_step.clear()
            self.loss.step_end(total / count, self.state.epoch or 0.0)

    def compute_references(self) -> None:
        """Log-probabilities of the answers under the model as it is now, unless they are known. Called when training
        begins: the engine is ready, and no weight has changed."""
        model = self.model_wrapped if is_deepspeed() else self.model
        with self.accelerator.autocast():
            for role in self._roles_with_reference:
                if role not in self._references:
                    dataset, device = getattr(self.train_dataset, role), self.args.device
                    batches, together = self._batches(dataset), shards_forward()
                    values = reference_log_probs(model, batches, len(dataset), device, together)
                    self._references[role] = self.accelerator.reduce(values.to(device), "sum").cpu()

    def _epochs(self) -> range:
        if self.args.max_steps > 0:
            examples = self.args.max_steps * self.args.train_batch_size * self.args.gradient_accumulation_steps
            return range(-(-examples * self.args.world_size // len(self.train_dataset)) + 1)
        return range(-int(-self.args.num_train_epochs // 1))

    def _batches(self, dataset: Any, rows: Sequence[int] | None = None, share: bool = True) -> LengthSortedBatches:
        return LengthSortedBatches(
            dataset,
            self.args.per_device_train_batch_size,
            self._collator,
            rows=rows,
            process=self.args.process_index if share else 0,
            num_processes=self.args.world_size if share else 1,
        )

    def _save_checkpoint(self, model, trial):
        # Before all else, so that a checkpoint that is complete has them.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            tensors = dict(self._references)
            tensors |= {f"{role}_before": before.log_probs for role, before in self._models_before.items()}
            tensors |= {f"loss.{name}": value for name, value in self.loss.state().items()}
            write_atomically(folder / REFERENCE_NAME, save(tensors, metadata=self._fingerprints))
        super()._save_checkpoint(model, trial)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        sets = {role: getattr(self.train_dataset, role) for role in ROLES}
        return {role: fingerprint(dataset) for role, dataset in sets.items() if dataset is not None}

    def _read_references(self, folder: str) -> dict[str, Tensor]:
        from safetensors import safe_open

        path = Path(folder) / REFERENCE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {REFERENCE_NAME}: it is not a checkpoint of a WagleTrainer.")
        with safe_open(path, "pt") as file:
            keys = file.metadata()
        for role, key in keys.items():
            if self._fingerprints.get(role) != key:
                raise ValueError(
                    f"The {role} set is not the one that the checkpoint in {folder} was trained on: its tokens differ. "
                    "Resume with the same data and tokenizer, or start a new run."
                )
        return load_file(path)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As `Trainer._save`; with `save_adapter`, the adapter in place of the model, or in a folder beside it."""
        if not self.args.save_adapter:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            adapter_folder = folder / BESIDE_MODEL if self.args.save_full_model else folder
            self._adapter.save(adapter_folder, self.model, self._training_facts())
            if self.args.save_full_model:
                super()._save(output_dir, state_dict)
            else:
                self.processing_class.save_pretrained(folder)
                torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _training_facts(self) -> dict[str, Any]:
        """How the weights were trained, for people who get them: no text of any set."""
        sets = {
            role: {"examples": len(getattr(self.train_dataset, role)), "digest": digest}
            for role, digest in self._fingerprints.items()
        }
        return {
            "objective": self.args.loss_type,
            "objective_arguments": self.args.loss_kwargs,
            "retain_loss": self.retain_loss,
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
        """As `Trainer.save_model`; the mask is saved beside the model, or beside the adapter that takes its place."""
        super().save_model(output_dir, _internal_call)
        if self.mask is not None and self.args.should_save:
            only_adapter = self.args.save_adapter and not self.args.save_full_model
            bits_in = ADAPTER_WEIGHTS_NAME if only_adapter else None
            self.mask.save_pretrained(output_dir or self.args.output_dir, bits_in=bits_in)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's model card with a section on how the model was made to forget."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            settings = {
                "objective": self.args.loss_type,
                "arguments of the objective": json.dumps(self.args.loss_kwargs) if self.args.loss_kwargs else None,
                "retain loss": self.retain_loss,
                "forget / retain weight": f"{self.args.forget_weight} / {self.args.retain_weight}",
                "forget / retain examples": f"{len(self.train_dataset)} / {len(self.train_dataset.retain)}",
                "LoRA modules": None if self.lora_modules is None else ", ".join(self.lora_modules),
            }
            card = Path(self.args.output_dir) / "README.md"
            add_unlearning_section(card, settings, self.mask)
            if self.args.save_adapter and not self.args.save_full_model:
                add_adapter_section(
                    card, self.args.hub_model_id or self.args.output_dir, self.model.config._name_or_path or None
                )


class _EpochOfPairs(TrainerCallback):
    """Tells the sampler its epoch: accelerate does not, once it skips batches on several processes."""

    def __init__(self, sampler: PairSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class _References(TrainerCallback):
    """Has the trainer compute what its loss needs of the model before unlearning."""

    def __init__(self, trainer: WagleTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.compute_references()


class _BaseOfAdapter(TrainerCallback):
    """Has the base model remembered, once the mask is known and before a weight changes."""

    def __init__(self, trainer: WagleTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        assert self.trainer.mask is not None
        self.trainer._adapter.begin(self.trainer.model, self.trainer.mask)


class _StepEnd(TrainerCallback):
    """Lets the objective adapt after every optimizer step."""

    def __init__(self, trainer: WagleTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_step()


class _SeedWorker:
    """`transformers.trainer_utils.seed_worker` with its last two arguments; a class, since workers must pickle it."""

    def __init__(self, num_workers: int, rank: int):
        self.num_workers, self.rank = num_workers, rank

    def __call__(self, worker: int) -> None:
        seed_worker(worker, self.num_workers, self.rank)


def _as_wagle_config(args: TrainingArguments | None, model: Any) -> WagleConfig:
    if isinstance(args, WagleConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return WagleConfig(f"{name.split('/')[-1]}-WAGLE")
    values = args.to_dict()
    values |= {name: getattr(args, name) for name in values if name.endswith("_token")}  # to_dict hides them
    values.pop("loss_type", None)  # SFTConfig's has another meaning
    return WagleConfig(**values)


def _load_processing_class(model: Any, config: WagleConfig) -> Any:
    """The tokenizer that belongs to the model. TRL would load it, but after our checks, which need it."""
    name = model if isinstance(model, str) else model.config._name_or_path
    if not name:
        raise ValueError(
            "The model was not loaded from a folder or from the Hub, so its tokenizer is not known: pass "
            "processing_class=tokenizer."
        )
    revision = (config.model_init_kwargs or {}).get("revision")
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)


def _make_loss(name: str, loss_kwargs: dict[str, Any]) -> UnlearningLoss:
    kwargs = {key: value for key, value in loss_kwargs.items() if key not in RETAIN_SETTINGS}
    try:
        loss = get_loss(name)(**kwargs)
    except TypeError as error:
        example = indent(example_of(name), "  ").rstrip()
        raise ValueError(
            f"loss_kwargs={kwargs} do not fit the loss {name!r}: {error}."
            + (f" For example:\n{example}" if example else "")
        ) from error
    unknown = sorted(loss.needs - NEEDS)
    alone = sorted(need for need in loss.needs if need.startswith("forget_") and "forget" not in loss.needs)
    if unknown or alone:
        raise ValueError(
            f"The loss {name!r} needs {', '.join(unknown or alone)}, "
            + (f"which is unknown. Known: {', '.join(sorted(NEEDS))}." if unknown else "but not 'forget': add it.")
        )
    return loss


def _overrides(loss: UnlearningLoss, method: str) -> bool:
    return getattr(type(loss), method) is not getattr(UnlearningLoss, method)


def _total_and_count(per_example: Tensor) -> Tensor:
    total = per_example.detach().sum()
    return torch.stack([total, torch.full_like(total, len(per_example))])


def _split(
    train_dataset: Any, forget: Dataset | None, retain: Dataset | None
) -> tuple[Dataset | None, Dataset | None]:
    if train_dataset is None:
        return forget, retain
    if forget is not None or retain is not None:
        raise ValueError("Pass either train_dataset, or forget_dataset and retain_dataset, not both.")
    if not isinstance(train_dataset, dict) or not {"forget", "retain"} <= set(train_dataset):
        found = (
            ", ".join(map(repr, train_dataset)) if isinstance(train_dataset, dict) else type(train_dataset).__name__
        )
        raise ValueError(
            'train_dataset must be a DatasetDict with the splits "forget" and "retain" (or pass forget_dataset and '
            f"retain_dataset); got {found}."
        )
    return train_dataset["forget"], train_dataset["retain"]
