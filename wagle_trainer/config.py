"""`WagleConfig`: the arguments of an unlearning run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl import SFTConfig

from wagle_trainer.attribution.config import check_attribution_arguments
from wagle_trainer.attribution.scores import list_scores, with_options
from wagle_trainer.losses import get_loss, list_losses
from wagle_trainer.losses.retain import check_retain_loss

ATTRIBUTION_LOSSES = ("auto", "nll", "chosen_nll")
ATTRIBUTION_DTYPES = ("float32", "bfloat16")


@dataclass
class WagleConfig(SFTConfig):
    r"""
    Configuration of [`WagleTrainer`]: that of TRL's [`~trl.SFTConfig`], and the arguments below. One default differs
    on machines without a GPU that computes in bfloat16: there `bf16` is off unless asked for, since it is slow.

    Parameters:
        loss_type (`str`, defaults to `"npo"`): Unlearning objective, one of `wagle_trainer.losses.list_losses()`.
        loss_kwargs (`dict`, *optional*): Arguments of the objective, such as `{"beta": 0.1}`; `"retain_loss"` chooses
            `"nll"`, `"kl"`, `"js"`, `"embed_diff"` (these to the model before unlearning) or `None`; `"retain_layer"` the
            layer of `"embed_diff"`, unless the objective has one.
        forget_weight (`float`, defaults to `1.0`): Factor of the forget loss.
        retain_weight (`float`, defaults to `1.0`): Factor of the retain loss (lambda).
        attribution (`str`, *optional*, defaults to `"wagle"`): Score that chooses the weights, one of
            `wagle_trainer.attribution.list_scores()`; `None` (on the command line: `none`) trains all of them.
        attribution_kwargs (`dict`, *optional*): Options of the score, such as `{"patterns": ["o_proj", "mlp"]}` of
            `"module"`.
        attribution_gamma (`float` or `str`, defaults to `1e-6`): Scale of the lower-level Hessian (arXiv 2410.17509,
            eq. 7); `"auto"`: the root mean square of the retain gradient; `"balanced"`: both terms of the score weigh
            the same in the median.
        attribution_loss (`str`, defaults to `"auto"`): Loss of the forget gradient: `"nll"` of the forget answers,
            `"chosen_nll"` of the preferred answers, or `"auto"`, which is what the objective learns from.
        attribution_scope (`str`, defaults to `"global"`): `"global"`, `"tensor"` or `"row"`.
        attribution_samples (`int`, *optional*): Use only the first so many examples of each set for the attribution.
        attribution_batch_size (`int`, *optional*): Defaults to `per_device_train_batch_size`.
        attribution_dtype (`str`, defaults to `"float32"`): Number format of the gradients' accumulators; `"bfloat16"`
            halves the memory and is less exact.
        attribution_offload (`str`, *optional*): `"cpu"` keeps the gradients' accumulators in host memory.
        attribution_include, attribution_exclude (`list[str]`, *optional*): Regular expressions on parameter names; what
            is left out is frozen.
        attribution_exclude_mask (`str`, *optional*): A saved mask (folder or Hub id) of an earlier forget request: its
            weights stay frozen, and the density is of the others.
        density (`float` or `str`, defaults to `0.8`): Share of the weights that may change; `"auto"`: where the selected
            share of the forget gradient is furthest above that of the retain gradient.
        mask_path (`str`, *optional*): A saved mask (folder or Hub id) to use; then nothing is computed.
        lora_modules (`int`, *optional*): With `peft_config=LoraConfig(target_modules="wagle")` (or another score), the
            number of Linear modules to adapt; by default those that hold at least their part of the selected weights, see
            `wagle_trainer.adapters.lora.lora_modules`. The score is computed as `attribution_gamma`, `density` and so on say.
        compact_optimizer (`bool`, *optional*): Keep AdamW's moments for the selected weights only; the weights come out
            the same. By default where it saves memory: up to density 0.5, with `optim` one of PyTorch's AdamW, on one
            process or with data parallelism. `True` insists on it, `False` turns it off.
        save_adapter (`bool`, defaults to `False`): Save what the mask let change as an adapter for PEFT, in place of the
            whole model, in checkpoints, too. See `wagle_trainer.adapters`.
        save_full_model (`bool`, defaults to `False`): With `save_adapter`, save the whole model as well; the adapter is
            then in the subfolder `adapter`.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*SFTConfig._VALID_DICT_FIELDS, "loss_kwargs", "attribution_kwargs"]

    loss_type: str = field(
        default="npo",
        metadata={"help": f"Unlearning objective: {', '.join(list_losses())}, or one that you registered."},
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Arguments of the objective as JSON, such as \'{"beta": 0.1, "retain_loss": "kl"}\'.'},
    )
    forget_weight: float = field(default=1.0, metadata={"help": "Factor of the forget loss."})
    retain_weight: float = field(default=1.0, metadata={"help": "Factor of the retain loss (lambda)."})
    attribution: str | None = field(
        default="wagle",
        metadata={
            "help": f"Score that chooses the weights that may change: {', '.join(list_scores())}, one that you "
            "registered, or none to train all weights."
        },
    )
    attribution_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Options of the score as JSON, such as \'{"patterns": ["o_proj", "mlp"]}\' of module.'},
    )
    # With None in the union, the command line takes a string: a number or the name of a rule.
    attribution_gamma: float | str | None = field(
        default=1e-6,
        metadata={
            "help": "Scale of the lower-level Hessian: small where the retain set looks like the training data; 'auto' "
            "or 'balanced' take it from the retain gradient."
        },
    )
    attribution_loss: str = field(
        default="auto",
        metadata={
            "help": "Loss whose gradient scores the weights on the forget set: 'nll' of the forget answers, "
            "'chosen_nll' of the preferred ones, or 'auto', which is what the objective learns from.",
            "choices": list(ATTRIBUTION_LOSSES),
        },
    )
    attribution_scope: str = field(
        default="global",
        metadata={
            "help": "Weights that compete with each other: 'global' (all), 'tensor' or 'row'.",
            "choices": ["global", "tensor", "row"],
        },
    )
    attribution_samples: int | None = field(
        default=None, metadata={"help": "Use only the first so many examples of each set for the attribution."}
    )
    attribution_batch_size: int | None = field(
        default=None, metadata={"help": "Batch size of the attribution; per_device_train_batch_size if not given."}
    )
    attribution_dtype: str = field(
        default="float32",
        metadata={
            "help": "Number format of the gradients' accumulators; bfloat16 halves the memory and is less exact.",
            "choices": list(ATTRIBUTION_DTYPES),
        },
    )
    attribution_offload: str | None = field(
        default=None,
        metadata={"help": "'cpu' keeps the gradients' accumulators in host memory, where they do not fit elsewhere."},
    )
    attribution_include: list[str] | None = field(
        default=None, metadata={"help": "Regular expressions: only parameters whose names match one are scored."}
    )
    attribution_exclude: list[str] | None = field(
        default=None, metadata={"help": "Regular expressions: parameters whose names match one are frozen."}
    )
    attribution_exclude_mask: str | None = field(
        default=None,
        metadata={"help": "A saved mask (folder or Hub id) of an earlier forget request: its weights stay frozen."},
    )
    density: float | str | None = field(
        default=0.8,
        metadata={"help": "Share of the weights that may change, in (0, 1], or 'auto': chosen from the gradients."},
    )
    mask_path: str | None = field(
        default=None, metadata={"help": "A saved mask (folder or Hub id) to use; then nothing is computed."}
    )
    lora_modules: int | None = field(
        default=None,
        metadata={
            "help": "How many Linear modules get a LoRA adapter where a score chooses them (lora_target_modules=wagle); by "
            "default those that hold at least their part of the selected weights."
        },
    )
    compact_optimizer: bool | None = field(
        default=None,
        metadata={
            "help": "Keep AdamW's moments for the selected weights only; by default up to density 0.5, where optim and "
            "engine allow it."
        },
    )
    save_adapter: bool = field(
        default=False,
        metadata={"help": "Save what the mask let change as an adapter for PEFT, in place of the whole model."},
    )
    save_full_model: bool = field(
        default=False,
        metadata={"help": "With save_adapter, save the whole model as well; the adapter goes to a subfolder."},
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and not self.fp16:  # type: ignore[has-type]
            # TRL's default of bf16=True is many times slower than float32 on CPUs without bfloat16 units.
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if isinstance(self.attribution, str) and self.attribution.lower() in ("none", "null"):
            self.attribution = None
        super().__post_init__()
        if not isinstance(self.loss_kwargs, dict | None):
            raise ValueError(
                f"loss_kwargs must be a dict, or JSON such as '{{\"beta\": 0.1}}', got {self.loss_kwargs!r}."
            )
        self.loss_kwargs = dict(self.loss_kwargs or {})
        get_loss(self.loss_type)
        check_retain_loss(self.loss_kwargs.get("retain_loss"))
        if not isinstance(self.attribution_kwargs, dict | None):
            raise ValueError(
                'attribution_kwargs must be a dict, or JSON such as \'{"patterns": ["mlp"]}\', got '
                f"{self.attribution_kwargs!r}."
            )
        if self.attribution is not None:
            with_options(self.attribution, self.attribution_kwargs)
        self.attribution_gamma, self.density = _number_or_rule(self.attribution_gamma), _number_or_rule(self.density)
        check_attribution_arguments(
            self.attribution_gamma, self.density, self.attribution_scope, self.attribution_offload
        )
        for name, known in (("loss", ATTRIBUTION_LOSSES), ("dtype", ATTRIBUTION_DTYPES)):
            value = getattr(self, f"attribution_{name}")
            if value not in known:
                raise ValueError(f"Unknown attribution_{name} {value!r}. Known: {', '.join(known)}.")
        for name in ("attribution_samples", "attribution_batch_size", "lora_modules"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("packing", "padding_free"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}=True mixes examples within a sequence, but unlearning needs the loss of each example: "
                    f"set {name}=False."
                )
        for name, used in (("train_sampling_strategy", "random"), ("label_smoothing_factor", 0.0)):
            if getattr(self, name) != used:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect on unlearning, which draws pairs by itself and has "
                    f"losses of its own: leave it at {used!r}."
                )


def _number_or_rule(value: float | str | None) -> float | str:
    """What the command line gave, as a number if it is one."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
