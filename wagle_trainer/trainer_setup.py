"""Everything of a run that can be checked before a trainer is there: `UnlearningSetup`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn
from transformers import AutoProcessor, TrainingArguments, set_seed
from transformers.utils import logging
from trl.trainer import sft_trainer
from trl.trainer.utils import create_model_from_path

from wagle_trainer.adapters.lora import (
    candidate_patterns,
    check_base,
    check_full_weights,
    check_no_mask,
    choose_modules,
    score_that_chooses,
    with_modules,
)
from wagle_trainer.attribution.attribution_callback import WeightAttributionCallback
from wagle_trainer.config import WagleConfig
from wagle_trainer.data.dataset_checks import pad_token_id
from wagle_trainer.data.preparation import in_one_format
from wagle_trainer.data.splits import by_split, check_sets, forget_and_retain
from wagle_trainer.losses.objective import Objective
from wagle_trainer.models.architecture import text_config
from wagle_trainer.utils.keyed_digests import users_key

logger = logging.get_logger(__name__)


@dataclass
class UnlearningSetup:
    """The arguments of a `WagleTrainer`, checked and put into the form that a run needs.

    Attributes:
        config: the configuration.
        objective: the losses that it names.
        sets: "forget", "retain" and, if they are needed, "chosen", as they were given.
        processing_class: the tokenizer.
        mask: a mask that is used as it is, or where one is saved; None if there is none.
        formatting_func: makes a text of an example.
        lora_score: the score that chooses modules for LoRA; None if none does.
    """

    config: WagleConfig
    objective: Objective
    sets: dict[str, Dataset]
    processing_class: Any
    mask: Any = None
    formatting_func: Callable[[dict], str] | None = None
    lora_score: str | None = None

    @classmethod
    def from_arguments(
        cls,
        model: Any,
        args: TrainingArguments | None = None,
        *,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        mask: Any = None,
        refusals: Sequence[str] | None = None,
        formatting_func: Callable[[dict], str] | None = None,
        peft_config: Any = None,
        compute_loss_func: Any = None,
    ) -> UnlearningSetup:
        """Check the arguments of `WagleTrainer`; `model` is not loaded.

        Raises:
            ValueError, TypeError: a set that is missing, empty or in no known format; arguments that exclude each other,
                or that would have no effect on unlearning, or a wrong one.
        """
        users_key()  # raises for one that can be guessed
        config = as_wagle_config(args, model)
        lora_score = score_that_chooses(peft_config)
        _check_arguments(config, mask, lora_score, callbacks, compute_loss_func)
        objective = Objective.from_arguments(
            config.loss_type, _as_mapping(config.loss_kwargs), config.forget_weight, config.retain_weight
        )
        forget, retain = forget_and_retain(train_dataset, forget_dataset, retain_dataset)
        if processing_class is None:
            processing_class = load_processing_class(model, config)
        forget_term = bool(objective.forget.needs)
        check_sets(forget, retain, eval_dataset, config, processing_class, formatting_func, forget_term)
        assert forget is not None and retain is not None
        needs_chosen = "chosen" in objective.needs
        sets = by_split(
            forget,
            retain,
            needs_chosen=needs_chosen or config.attribution_loss == "chosen_nll",
            refusals=refusals,
            accepts_refusals=objective.forget.accepts_refusals or not needs_chosen,
            seed=config.seed,
            loss_type=config.loss_type,
        )
        pad_token_id(processing_class)
        mask = mask if mask is not None else config.mask_path
        if lora_score is not None:
            check_no_mask(lora_score, mask is not None or config.attribution is not None)
        return cls(config, objective, sets, processing_class, mask, formatting_func, lora_score)

    def load_model(self, model: Any, quantization_config: Any = None) -> Any:
        """Return the model, loaded as SFTTrainer loads it if it is a name.

        Raises:
            ValueError: a score is to choose LoRA's modules, and cannot score these weights; two quantisations are given.
        """
        config, init_kwargs = self.config, dict(self.config.model_init_kwargs or {})
        if self.lora_score is not None:
            check_base(model, quantization_config is not None or init_kwargs.get("quantization_config") is not None)
        if not isinstance(model, str):
            ignored = {"model_init_kwargs": init_kwargs, "quantization_config": quantization_config}
            for name in (name for name, value in ignored.items() if value):
                logger.warning(f"{name} has no effect: the model is loaded already.")
            return model
        if quantization_config is not None:
            if "quantization_config" in init_kwargs:
                raise ValueError("quantization_config is given twice, also in model_init_kwargs: leave one out.")
            init_kwargs["quantization_config"] = quantization_config
        if config.world_size > 1 or config.deepspeed_plugin is not None:
            init_kwargs["device_map"] = None  # each process holds the full model, or the engine shards it
        init_kwargs.setdefault("trust_remote_code", config.trust_remote_code)
        set_seed(config.seed)  # weights that the files lack are drawn
        return create_model_from_path(model, **init_kwargs)

    def with_lora_modules(self, peft_config: Any, model: Any) -> tuple[Any, list[str]]:
        """Choose modules for LoRA by their score.

        Returns:
            A copy of `peft_config` that names the modules, and their names, highest share first.

        Raises:
            ValueError: the modules cannot be compared, there are too few, or the engine is going to shard the model.
        """
        config, score = self.config, self.lora_score
        assert score is not None
        check_full_weights(config)
        patterns = candidate_patterns(
            score,
            model,
            scope=config.attribution_scope,
            include=config.attribution_include,
            exclude=config.attribution_exclude,
            number=config.lora_modules,
        )
        callback = self.attribution(score, include=patterns, exclude=None)
        modules = choose_modules(score, callback, model, config, self.processing_class, config.lora_modules)
        return with_modules(peft_config, modules), modules

    def attribution(self, score: str, mask: Any = None, **changes: Any) -> WeightAttributionCallback:
        """Return the callback that scores weights as the configuration says.

        Args:
            score: the score, whatever `config.attribution` says.
            mask: a mask to use, or where one is saved; then nothing is computed.
            changes: fields of `AttributionConfig` that take other values.
        """
        config, needs = self.config, self.objective.needs
        chosen = config.attribution_loss == "chosen_nll" or (
            config.attribution_loss == "auto" and "chosen" in needs and "forget" not in needs
        )
        return WeightAttributionCallback(
            self.sets["chosen" if chosen else "forget"],
            self.sets["retain"],
            # The forget set is the one to score by, in whatever format: there is nothing left to choose.
            config.attribution_config(score, **{"attribution_loss": "auto"} | changes),
            mask=mask,
        )

    def masked_attribution(self) -> WeightAttributionCallback | None:
        """Return the callback that masks the run; None if all weights are trained."""
        if self.mask is None and self.config.attribution is None:
            return None
        return self.attribution(self.config.attribution or "wagle", mask=self.mask)

    @contextmanager
    def for_sft_trainer(self, model: Any) -> Iterator[dict[str, Any]]:
        """Yield the arguments with which `SFTTrainer.__init__` accepts this run, and undo its side effects on exit.

        SFTTrainer knows one set and two losses. It prepares its set before this package can refuse answers that are cut
        off, so it gets one row, which only tells it the format. It refuses every `loss_type` but its own. It warns that
        `model_init_kwargs` are ignored where the model is loaded, also where they were used to load it. And it changes
        the model: see `_model_as_found`.
        """
        config, sample = self.config, self.sets["forget"].select(range(1))
        if self.formatting_func is None:
            sample = in_one_format(sample, config.dataset_text_field)
        found = config.loss_type, config.model_init_kwargs
        config.loss_type, config.model_init_kwargs = "nll", None
        try:
            with _model_as_found(model), _no_progress_bars():  # of one row
                yield {
                    "model": model,
                    "args": config,
                    "train_dataset": sample,
                    "processing_class": self.processing_class,
                    "formatting_func": self.formatting_func,
                }
        finally:
            config.loss_type, config.model_init_kwargs = found


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep `datasets` from showing progress bars."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


@contextmanager
def _model_as_found(model: nn.Module) -> Iterator[None]:
    """Keep `SFTTrainer.__init__` from patching the model's forward pass, and restore the configuration that it changes.

    The patch, `add_fused_lm_head`, is a closure over this model: a copy of the model would compute with the weights of
    the original, and the fused head misses what some heads do to their logits. No loss of this package uses it. The
    router logits that are switched on for mixtures of experts break generation in batches, and would be saved.
    `tests/test_upstream.py` watches the names.
    """
    config = text_config(model)
    names = [name for name in ("output_router_logits", "router_aux_loss_coef") if hasattr(config, name)]
    found = [(config, name, getattr(config, name)) for name in names]
    whole: Any = getattr(model, "config", None)
    if hasattr(whole, "use_cache"):
        found.append((whole, "use_cache", whole.use_cache))
    patch, sft_trainer.add_fused_lm_head = sft_trainer.add_fused_lm_head, lambda *args, **kwargs: None
    try:
        yield
    finally:
        sft_trainer.add_fused_lm_head = patch
        for owner, name, value in found:
            setattr(owner, name, value)


def as_wagle_config(args: TrainingArguments | None, model: Any) -> WagleConfig:
    """Return any arguments of a trainer as a `WagleConfig`; by default one whose output folder is named after the model."""
    if isinstance(args, WagleConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        return WagleConfig(f"{name.split('/')[-1]}-WAGLE")
    values = args.to_dict()
    values |= {name: getattr(args, name) for name in values if name.endswith("_token")}  # to_dict hides them
    values.pop("loss_type", None)  # SFTConfig's has another meaning
    return WagleConfig(**values)


def load_processing_class(model: Any, config: WagleConfig) -> Any:
    """Load the tokenizer of the model. TRL would load it, but after our checks, which need it.

    Raises:
        ValueError: the model was not loaded from anywhere.
    """
    name = model if isinstance(model, str) else model.config.name_or_path
    if not name:
        raise ValueError(
            "The model was not loaded from a folder or from the Hub, so its tokenizer is not known: pass "
            "processing_class=tokenizer."
        )
    revision = (config.model_init_kwargs or {}).get("revision")
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)


def _check_arguments(
    config: WagleConfig, mask: Any, lora_score: str | None, callbacks: Any, compute_loss_func: Any
) -> None:
    """Raise ValueError for arguments that exclude each other, or would have no effect on unlearning, or a wrong one."""
    if mask is not None and config.mask_path is not None:
        raise ValueError("Two masks are given, mask= and mask_path: leave out the one that is not meant.")
    if config.lora_modules is not None and lora_score is None:
        raise ValueError(
            f"lora_modules={config.lora_modules} is how many modules a score chooses for LoRA, but none is to choose: pass "
            'peft_config=LoraConfig(target_modules="wagle"), or leave it out.'
        )
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func has no effect on unlearning: enter an objective of your own with "
            "wagle_trainer.losses.register_loss, and name it in loss_type."
        )
    if any(isinstance(callback, WeightAttributionCallback) for callback in callbacks or ()):
        raise ValueError(
            "WagleTrainer makes its WeightAttributionCallback itself, and two masks at once are not possible: say in "
            "WagleConfig how to score (attribution=..., density=...), or pass mask=."
        )


def _as_mapping(loss_kwargs: Any) -> Mapping[str, Any]:
    return loss_kwargs or {}
