"""LoRA by attribution: which Linear modules get an adapter."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from wagle_trainer.attribution.attribution_callback import WeightAttributionCallback
from wagle_trainer.attribution.scored_parameters import select_parameters
from wagle_trainer.attribution.scores import list_scores
from wagle_trainer.engines.engine import planned_engine
from wagle_trainer.masking import WeightMask
from wagle_trainer.models.architecture import linear_weights

logger = logging.get_logger(__name__)


def lora_modules(mask: WeightMask, model: nn.Module, number: int | None = None) -> list[str]:
    """Return the Linear modules that a mask of the base weights targets, for `LoraConfig(target_modules=...)`.

    The share of a module is the part of its weights that the mask selects. Taken are the modules whose share is at
    least that of all these modules together: those which hold more of the selected weights than their size accounts
    for. With `number`, it is the so many modules with the highest shares. Of equal shares, the module that comes first
    in the model counts as higher.

    Args:
        mask: of the base weights, with the scope "global": the others give every module the same share.
        model: the base model.
        number: how many modules.

    Returns:
        Full module names, highest share first.

    Raises:
        ValueError: the mask is of another scope, holds none of the Linear weights, or has fewer modules than `number`.
        MaskMismatchError: the mask belongs to another model.

    Example:
        >>> mask = WeightMask.from_pretrained("mask")
        >>> config = LoraConfig(target_modules=lora_modules(mask, model), task_type="CAUSAL_LM")
    """
    if mask.info.scope in ("tensor", "row"):
        raise ValueError(
            f'A mask of scope "{mask.info.scope}" selects the same share of every module, so it targets none: '
            'compute it with the scope "global".'
        )
    mask.check(model)
    counts = {
        module: (mask.num_selected_in(weight), math.prod(mask.shape(weight)))
        for module, weight in linear_weights(model).items()
        if weight in mask
    }
    if not counts:
        raise ValueError("The mask holds no weight of a Linear module, so it targets none that LoRA could adapt.")
    if number is not None and not 1 <= number <= len(counts):
        raise ValueError(f"lora_modules={number}, but the mask scores {len(counts)} Linear modules.")
    ranked = sorted(counts, key=lambda module: -counts[module][0] / counts[module][1])  # stable: ties stay in order
    if number is not None:
        return ranked[:number]
    selected, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return [module for module in ranked if counts[module][0] * total >= selected * counts[module][1]]


def score_that_chooses(peft_config: Any) -> str | None:
    """The score that `LoraConfig(target_modules="wagle")` names; None where `target_modules` is PEFT's own business."""
    wanted = getattr(peft_config, "target_modules", None)
    return wanted if isinstance(wanted, str) and wanted in list_scores() else None


def check_no_mask(score: str, has_mask: bool) -> None:
    """Raise ValueError if a run has a weight mask where `score` chooses modules for LoRA."""
    if has_mask:
        raise ValueError(
            f"LoraConfig(target_modules={score!r}) scores the base weights to choose modules for LoRA; a weight mask "
            "on top of it is not possible: set attribution=None and give no mask. To choose by a mask that you "
            "have, use target_modules=wagle_trainer.adapters.lora.lora_modules(mask, model)."
        )


def candidate_patterns(
    score: str,
    model: nn.Module,
    *,
    scope: str = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    number: int | None = None,
) -> list[str]:
    """Return regular expressions for the Linear weights among which a score chooses modules for LoRA.

    Args:
        score: a name of `list_scores()`.
        model: the base model.
        scope, include, exclude: of the attribution.
        number: how many modules the score is to choose.

    Raises:
        ValueError: the scope is not "global", or there are too few modules.
    """
    if scope != "global":
        raise ValueError(
            f"target_modules={score!r} compares modules with each other: attribution_scope must be 'global', not "
            f"{scope!r}, which selects the same share of each."
        )
    names = select_parameters(model, include, exclude)
    adaptable = modules_that_peft_adapts(model)
    patterns = [
        f"^{re.escape(name)}$"
        for module, name in linear_weights(model).items()
        if name in names and module in adaptable
    ]
    if len(patterns) < (number or 1):
        raise ValueError(
            f"There are {len(patterns)} Linear modules to choose from for LoRA (attribution_include and "
            f"attribution_exclude count, the output head is none of them); lora_modules={number}."
        )
    return patterns


def modules_that_peft_adapts(model: nn.Module) -> set[str]:
    """Names of the Linear modules on which PEFT puts LoRA when it is given their names.

    In mixtures of experts such as DeepSeek-V3, PEFT takes `down_proj` of a dense or shared MLP for that of the routed
    experts, adapts these in its place, and refuses `gate_proj` alone. In Mamba's blocks it refuses `out_proj`. Tried on
    copies of the model without memory.
    """
    modules = set(linear_weights(model))
    if not isinstance(model, PreTrainedModel) or _adapted_of_a_copy(model, modules) == modules:
        return modules
    found: set[str] = set()
    for leaf in {module.rpartition(".")[2] for module in modules}:
        named = {module for module in modules if module.rpartition(".")[2] == leaf}
        if _adapted_of_a_copy(model, named) == named:
            found |= named
    if left_out := sorted(modules - found):
        logger.warning(
            f"PEFT puts no LoRA on {len(left_out)} modules such as {left_out[-1]}, or puts it on routed experts in their "
            "place: they are not among the modules to choose from."
        )
    return found


def _adapted_of_a_copy(model: PreTrainedModel, modules: set[str]) -> set[str]:
    """The modules that carry LoRA once PEFT has been given these names; none where it refuses them."""
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    try:
        inject_adapter_in_model(LoraConfig(target_modules=sorted(modules), r=1), twin)
    except ValueError:
        return set()
    return _adapted(twin)


def check_adapted_modules(model: nn.Module, modules: Sequence[str]) -> None:
    """Raise ValueError unless exactly these modules of a PEFT model carry an adapter."""
    adapted = {name.removeprefix("base_model.model.") for name in _adapted(model)}
    if wrong := sorted(adapted ^ set(modules)):
        raise ValueError(
            f"PEFT put the adapter on other modules than those that were chosen: {wrong[0]!r} and {len(wrong) - 1} others "
            "differ. Leave such modules out with attribution_exclude, or name target_modules yourself."
        )


def _adapted(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def choose_modules(
    score: str,
    callback: WeightAttributionCallback,
    model: nn.Module,
    args: Any,
    processing_class: Any,
    number: int | None = None,
) -> list[str]:
    """Score the Linear weights of the base, before TRL puts the adapter around it, and choose by `lora_modules`.

    Args:
        score: what `score_that_chooses` found.
        callback: scores the weights of `candidate_patterns`.
        model: the base model; moves to `args.device`.
        args: the trainer's.
        processing_class: the tokenizer.
        number: how many modules; see `lora_modules`.

    Returns:
        Full module names, highest share first.
    """
    callback.prepare(args, model, processing_class)
    if not hasattr(model, "hf_device_map"):
        model.to(args.device)
    mask = callback.compute(args, model, processing_class)
    modules = lora_modules(mask, model, number)
    share = {name.removesuffix(".weight"): entry["density"] for name, entry in mask.summary()["tensor"].items()}
    logger.info(
        f"LoRA adapts {len(modules)} of {len(share)} Linear modules, chosen by the score {score!r}: "
        + ", ".join(f"{module} ({share[module]:.4g})" for module in modules)
        + f". In brackets the share of selected weights; it is {mask.density:.4g} over all of them."
    )
    return modules


def with_modules(peft_config: Any, modules: list[str]) -> Any:
    """A copy of `peft_config` that names these modules, and is saved with their names."""
    named = copy.copy(peft_config)
    named.target_modules = set(modules)
    return named


def check_base(model: Any, quantised: bool = False) -> None:
    """Raise ValueError for a base model whose weights cannot be scored: quantised, or with an adapter already.

    Args:
        model: the base model, or its name.
        quantised: whether it is going to be quantised when it is loaded.
    """
    if quantised or getattr(model, "is_quantized", False):
        raise ValueError(
            "Quantised weights cannot be scored, so they cannot choose the modules for LoRA. Score the unquantised model "
            "first (`wagle attribute`), and name the modules: target_modules=wagle_trainer.adapters.lora.lora_modules(mask, model)."
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "The model has an adapter already: merge it (merge_and_unload) before modules are chosen for LoRA."
        )


def check_full_weights(args: Any) -> None:
    """Raise ValueError if the engine is going to shard the base model: it is not set up yet when modules are chosen."""
    if (engine := planned_engine(args)).gathers_weights_in_forward:
        raise ValueError(
            f"A score chooses the modules for LoRA from full base weights, but {engine.name} shards them. Choose on one "
            "process or with data parallelism: `wagle attribute`, then "
            "target_modules=wagle_trainer.adapters.lora.lora_modules(mask, model)."
        )


def check_same_modules(checkpoint: str, model: Any) -> None:
    """Raise ValueError unless the adapter in `checkpoint` stands beside the same modules as the one of `model`."""
    saved, now = (
        set(config.target_modules) for config in (PeftConfig.from_pretrained(checkpoint), model.peft_config["default"])
    )
    if saved != now:
        raise ValueError(
            f"The checkpoint in {checkpoint} adapts other modules than this run chose: the data, the model or the "
            f"settings of the score differ. Resume with LoraConfig(target_modules={sorted(saved)})."
        )
