"""From the arguments of a run to the configuration, the tokenizer and the attribution that they stand for."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoProcessor, TrainingArguments

from wagle_trainer.attribution.attribution_callback import WeightAttributionCallback
from wagle_trainer.config import WagleConfig
from wagle_trainer.losses import UnlearningLoss


def as_wagle_config(args: TrainingArguments | None, model: Any) -> WagleConfig:
    """Any arguments of a trainer as a `WagleConfig`; by default one whose output folder is named after the model."""
    if isinstance(args, WagleConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        return WagleConfig(f"{name.split('/')[-1]}-WAGLE")
    values = args.to_dict()
    values |= {name: getattr(args, name) for name in values if name.endswith("_token")}  # to_dict hides them
    values.pop("loss_type", None)  # SFTConfig's has another meaning
    return WagleConfig(**values)


def check_trainer_arguments(
    config: WagleConfig, mask: Any, score_for_lora: str | None, callbacks: Any, compute_loss_func: Any
) -> None:
    """Raise ValueError for arguments that exclude each other, or would have no effect on unlearning, or a wrong one."""
    if mask is not None and config.mask_path is not None:
        raise ValueError("Two masks are given, mask= and mask_path: leave out the one that is not meant.")
    if config.lora_modules is not None and score_for_lora is None:
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


def load_processing_class(model: Any, config: WagleConfig) -> Any:
    """The tokenizer that belongs to the model. TRL would load it, but after our checks, which need it.

    Raises:
        ValueError: the model was not loaded, so nobody knows.
    """
    name = model if isinstance(model, str) else model.config.name_or_path
    if not name:
        raise ValueError(
            "The model was not loaded from a folder or from the Hub, so its tokenizer is not known: pass "
            "processing_class=tokenizer."
        )
    revision = (config.model_init_kwargs or {}).get("revision")
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)


def attribution_callback(
    config: WagleConfig, score: str, sets: dict[str, Dataset], loss: UnlearningLoss, mask: Any = None, **changes: Any
) -> WeightAttributionCallback:
    """The callback that scores weights as the configuration says.

    Args:
        score: its score, whatever `config.attribution` says.
        sets: "forget", "retain" and, for objectives with chosen answers, "preferred".
        loss: the objective, whose forget term says which answers "auto" scores by.
        mask: a mask to use, or where one is saved; then nothing is computed.
        changes: fields of `AttributionConfig` that take other values.
    """
    chosen = config.attribution_loss == "chosen_nll" or (
        config.attribution_loss == "auto" and "preferred" in loss.needs and "forget" not in loss.needs
    )
    return WeightAttributionCallback(
        sets["preferred" if chosen else "forget"],
        sets["retain"],
        config.attribution_config(score, **changes),
        mask=mask,
    )
