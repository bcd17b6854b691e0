"""`AttributionConfig`: every argument of an attribution, defined, documented and checked here alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import torch

from wagle_trainer.attribution.automatic import GAMMA_RULES
from wagle_trainer.attribution.scores import Score, arguments_of, list_scores, name_of, needed_statistics, with_options
from wagle_trainer.attribution.selection import SCOPES
from wagle_trainer.masking.mask import WeightMask

ATTRIBUTION_LOSSES = ("auto", "nll", "chosen_nll")
# The number formats that the command line offers; in Python, any floating dtype of torch does.
ATTRIBUTION_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class AttributionConfig:
    """How the weights are scored and selected (WAGLE, arXiv 2410.17509).

    Every field can also be a keyword of `attribute` and of `WeightAttributionCallback`, and a field of `WagleConfig`:
    `attribution` is the score, `attribution_kwargs` its options, `density` the density; the others have the prefix
    `attribution_`, but for `seed`, which is that of the run.

    Args:
        score: a name of `list_scores()`, or a function (see `wagle_trainer.attribution.scores`).
        score_kwargs: options of the score, such as {"patterns": ["o_proj"]} of "module".
        gamma: scale of the lower-level Hessian (eq. 7), > 0: small where the retain set looks like the training data
            (1e-6 on TOFU and WMDP), large where it does not (1e4 to 1e6). The limits are |g_r * g_f| and |theta * g_f|.
            "auto" and "balanced" take it from the retain gradient (see `automatic.choose_gamma`).
        density: share of the weights to select, in (0, 1]; exactly floor(density * N) are. "auto" takes the density
            where the curves of forget and retain gradient are furthest apart (see `automatic.DensityCurve`), or 0.8,
            with a warning, where they are nowhere clearly apart.
        scope: "global" (all weights compete), "tensor" (the same density in every tensor) or "row" (in every row of
            every matrix).
        include, exclude: regular expressions searched for in parameter names. Parameters left out are frozen.
        exclude_mask: a `WeightMask`, or where one is saved, of an earlier forget request. Its weights are no
            candidates, and the density is of the others.
        attribution_loss: on a preference set, "nll" scores by the rejected and "chosen_nll" by the chosen answers;
            "auto" is "chosen_nll" there, and the answers themselves on other sets. In `WagleTrainer`, "auto" follows
            the objective. `attribute` takes batches and ignores it.
        samples: use only the first so many examples of each set. `attribute` ignores it.
        batch_size: examples per forward pass; the trainer's `per_device_train_batch_size` if None. `attribute` ignores
            it.
        dtype: of the gradients' accumulators: a floating `torch.dtype` or its name.
        offload: "cpu" keeps accumulators and scores in host memory, None where the model is, and "auto" in host memory
            if a GPU has no room for them.
        seed: of the "random" score.

    Raises:
        ValueError: an argument is out of range or unknown.

    Example:
        >>> config = AttributionConfig(score="snip", density=0.05)
        >>> config.scope, config.needs
        ('global', {'forget': {'grad'}})
    """

    score: str | Score = field(
        default="wagle",
        metadata={
            "help": f"Score that chooses the weights that may change: {', '.join(list_scores())}, or one that you registered."
        },
    )
    score_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={"help": 'Options of the score as JSON, such as \'{"patterns": ["o_proj", "mlp"]}\' of module.'},
    )
    gamma: float | str = field(
        default=1e-6,
        metadata={
            "help": "Scale of the lower-level Hessian (arXiv 2410.17509, eq. 7): small where the retain set looks like the training "
            "data; 'auto' (root mean square of the retain gradient) or 'balanced' (both terms of the score weigh the same "
            "in the median) take it from the retain gradient."
        },
    )
    density: float | str = field(
        default=0.8,
        metadata={
            "help": "Share of the weights that may change, in (0, 1], or 'auto': where the selected share of the forget gradient is "
            "furthest above that of the retain gradient."
        },
    )
    scope: str = field(
        default="global",
        metadata={
            "help": "Weights that compete with each other: 'global' (all), 'tensor' or 'row'.",
            "choices": list(SCOPES),
        },
    )
    include: Sequence[str] | None = field(
        default=None,
        metadata={
            "help": "Regular expressions: only parameters whose names match one are scored, all others are frozen."
        },
    )
    exclude: Sequence[str] | None = field(
        default=None, metadata={"help": "Regular expressions: parameters whose names match one are frozen."}
    )
    exclude_mask: WeightMask | str | os.PathLike[str] | None = field(
        default=None,
        metadata={
            "help": "A saved mask (folder or Hub id) of an earlier forget request: its weights stay frozen, and the density is of "
            "the others."
        },
    )
    attribution_loss: str = field(
        default="auto",
        metadata={
            "help": "Loss whose gradient scores the weights on the forget set: 'nll' of the forget answers, 'chosen_nll' of the "
            "chosen answers, or 'auto', which is what the objective learns from.",
            "choices": list(ATTRIBUTION_LOSSES),
        },
    )
    samples: int | None = field(
        default=None, metadata={"help": "Use only the first so many examples of each set for the attribution."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Batch size of the attribution; per_device_train_batch_size if not given."}
    )
    dtype: torch.dtype | str = field(
        default="float32",
        metadata={
            "help": "Number format of the gradients' accumulators; bfloat16 halves the memory and is less exact.",
            "choices": list(ATTRIBUTION_DTYPES),
        },
    )
    offload: str | None = field(
        default="auto",
        metadata={
            "help": "Where the gradients' accumulators lie: 'cpu' is host memory, 'none' the device, 'auto' the device if it has "
            "room for them."
        },
    )
    seed: int = field(default=42, metadata={"help": "Seed of the score 'random'."})

    def __post_init__(self) -> None:
        if not isinstance(self.score_kwargs, Mapping | None):
            raise ValueError(
                'The options of a score (attribution_kwargs) must be a dict, or JSON such as \'{"patterns": ["mlp"]}\', '
                f"got {self.score_kwargs!r}."
            )
        normal: dict[str, Any] = {"score_kwargs": dict(self.score_kwargs or {}) or None}
        normal |= {name: as_list(getattr(self, name)) for name in ("include", "exclude")}
        normal["offload"] = None if self.offload == "none" else self.offload  # as the command line says it
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        arguments_of(self.score_function)
        _check_gamma(self.gamma)
        _check_density(self.density, self.scope)
        if self.offload not in (None, "auto", "cpu"):
            raise ValueError(f'attribution_offload must be "auto", "cpu" or None, got {self.offload!r}.')
        if self.attribution_loss not in ATTRIBUTION_LOSSES:
            raise ValueError(
                f"Unknown attribution_loss {self.attribution_loss!r}. Known: {', '.join(ATTRIBUTION_LOSSES)}."
            )
        object.__setattr__(self, "dtype", _torch_dtype(self.dtype))
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"attribution_{name} must be at least 1, got {value}.")

    @cached_property
    def score_function(self) -> Score:
        """The score with its options set."""
        return with_options(self.score, self.score_kwargs)

    @cached_property
    def score_arguments(self) -> list[str]:
        """Which arguments the score takes."""
        return arguments_of(self.score_function)

    @property
    def needs(self) -> dict[str, set[str]]:
        """Which statistics of which set are needed: {"forget": {"grad"}, ...}; sets that are not needed are left out."""
        return needed_statistics(self.score_function, self.gamma, self.density)

    @cached_property
    def earlier_mask(self) -> WeightMask | None:
        """The mask of `exclude_mask`, loaded on first use."""
        return load_mask(self.exclude_mask)

    def requested_info(self) -> dict[str, Any]:
        """The fields of `MaskInfo` that are known before any weight is scored. A resumed mask must have the same."""
        info: dict[str, Any] = {"scope": self.scope, "score_kwargs": self.score_kwargs}
        info |= {"score": self.score} if isinstance(self.score, str) else {}  # a function's name proves nothing
        info |= {"include": self.include, "exclude": self.exclude}
        info["exclude_mask"] = self.earlier_mask.digest if self.earlier_mask is not None else None
        info |= {"seed": self.seed} if "generator" in self.score_arguments else {}
        by_rule = {"requested_density": ("density_rule", self.density)}
        by_rule |= {"gamma": ("gamma_rule", self.gamma)} if "gamma" in self.score_arguments else {}
        for number, (rule, value) in by_rule.items():
            info |= {rule: value} if isinstance(value, str) else {number: value, rule: None}
        return info

    def mask_info(self, gamma: float | str, density: float) -> dict[str, Any]:
        """`requested_info`, the score's name, and the numbers that were used where a rule was requested.

        Args:
            gamma: the number that was used.
            density: the number that was used.
        """
        used = {"gamma": gamma} if "gamma" in self.score_arguments else {}
        return {**self.requested_info(), "score": name_of(self.score), "requested_density": density, **used}


def as_attribution_config(config: AttributionConfig | None, arguments: Mapping[str, Any]) -> AttributionConfig:
    """`config`, or the one that the keyword arguments make.

    Raises:
        TypeError: both are given, or a keyword is unknown.
    """
    if config is None:
        return AttributionConfig(**arguments)
    if not isinstance(config, AttributionConfig):
        raise TypeError(f"The config must be an AttributionConfig, got {type(config).__name__}.")
    if arguments:
        raise TypeError(
            f"An AttributionConfig and the arguments {', '.join(arguments)} are given: use one of the two forms, or "
            "dataclasses.replace(config, ...)."
        )
    return config


def load_mask(mask: WeightMask | str | os.PathLike[str] | None) -> WeightMask | None:
    """A mask as it is, or read from where it is saved."""
    return mask if mask is None or isinstance(mask, WeightMask) else WeightMask.from_pretrained(mask)


def as_list(patterns: str | Sequence[str] | None) -> list[str] | None:
    """One pattern or several as a list; None if there is none."""
    return [patterns] if isinstance(patterns, str) else list(patterns or ()) or None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_gamma(gamma: Any) -> None:
    if gamma in GAMMA_RULES or (_is_number(gamma) and gamma > 0 and not math.isinf(gamma)):
        return
    rules = " or ".join(f'"{rule}"' for rule in GAMMA_RULES)
    raise ValueError(f"attribution gamma must be a positive, finite number, {rules}, got {gamma!r}.")


def _check_density(density: Any, scope: str) -> None:
    if not (density == "auto" or (_is_number(density) and 0 < density <= 1)):
        raise ValueError(
            f'density must be in (0, 1], got {density!r}; it is the share of weights that may change. Or "auto".'
        )
    if scope not in SCOPES:
        raise ValueError(f"Unknown attribution scope {scope!r}. Known: {', '.join(SCOPES)}.")
    if density == "auto" and scope != "global":
        raise ValueError(f'density="auto" compares all weights: use the scope "global", not {scope!r}.')


def _torch_dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str) and dtype not in ATTRIBUTION_DTYPES:
        raise ValueError(f"Unknown attribution_dtype {dtype!r}. Known: {', '.join(ATTRIBUTION_DTYPES)}.")
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"attribution_dtype must be a floating dtype, got {dtype!r}.")
    return found
