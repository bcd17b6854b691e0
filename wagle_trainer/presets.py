"""Presets: the settings of a publication under one name, for `WagleConfig(preset=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

# Sources: [paper] WAGLE, arXiv 2410.17509, section 5 and its appendix; [code] the configurations of its authors,
# github.com/OPTML-Group/WAGLE, configs/unlearn/. recipes/configs/llama_2_7b*.yaml and zephyr_7b*.yaml hold the same numbers,
# with the source of each line.
_NPO = {"loss_kwargs": {"beta": 0.1, "length_normalized": True}}  # [code] the log-ratio is a mean over tokens
_SHARED: dict[str, Any] = {
    "attribution": "wagle",  # [paper] eq. 7
    "attribution_gamma": 1e-6,  # [paper] for TOFU and WMDP
    "retain_weight": 1.0,  # [code]
    "lr_scheduler_type": "linear",  # [code]
    "warmup_steps": 0.1,  # [code] a share of all steps
    "per_device_train_batch_size": 1,  # [code]
    "gradient_accumulation_steps": 4,  # [code]
}
_TOFU = _SHARED | {"num_train_epochs": 5.0, "weight_decay": 0.1, "max_length": 512}  # [paper, code]
_WMDP = _SHARED | {"max_steps": 500, "weight_decay": 0.0, "max_length": 1024}  # [paper, code]

# preset -> objective -> field of WagleConfig -> value
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "wagle-paper": {  # TOFU on Llama-2-7B-chat
        "npo": _TOFU | _NPO | {"density": 0.95, "learning_rate": 1e-5},  # [code]
        "grad_diff": _TOFU | {"density": 0.95, "learning_rate": 7e-6},  # [code]
        "po": _TOFU | {"density": 0.8, "learning_rate": 2e-5},  # [code]
    },
    "wagle-paper-wmdp": {  # WMDP on Zephyr-7B-beta
        "npo": _WMDP | _NPO | {"density": 0.6, "learning_rate": 1e-5},  # [paper, code]
        "grad_diff": _WMDP | {"density": 0.4, "learning_rate": 5e-6},  # [paper, code]
    },
}


def apply_preset(config: Any, name: str, objective: str) -> None:
    """Set the fields of a configuration that the caller left at their defaults.

    A field counts as left where it holds the very object that is its default. So an explicit `density=0.8` stays, on the
    command line and in YAML, too. Integers and names are shared objects: an explicit one that equals its default counts as
    left.

    Args:
        config: a dataclass instance, changed in place.
        name: of the preset.
        objective: the unlearning objective; the settings differ by it.

    Raises:
        ValueError: the preset is unknown, or has no settings for the objective.
    """
    for field_name, value in preset_values(name, objective).items():
        default = next(one.default for one in fields(config) if one.name == field_name)
        if getattr(config, field_name) is default:
            setattr(config, field_name, value)


def preset_values(name: str, objective: str) -> Mapping[str, Any]:
    """Fields of `WagleConfig` and their values in a preset.

    Raises:
        ValueError: the preset is unknown, or has no settings for the objective.
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}. Known: {', '.join(PRESETS)}.")
    if objective not in PRESETS[name]:
        raise ValueError(
            f"The preset {name!r} has no settings for loss_type={objective!r}: its source used {', '.join(PRESETS[name])}. "
            "Take one of these, or leave the preset out."
        )
    return dict(PRESETS[name][objective])
