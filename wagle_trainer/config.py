"""`WagleConfig`: the arguments of an unlearning run."""

# ruff: noqa: RUF009 (`_attribution_field` is `dataclasses.field`)
from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from transformers import get_scheduler
from trl import SFTConfig

from wagle_trainer.attribution.config import AttributionConfig
from wagle_trainer.losses import get_loss, get_retain_loss, list_losses, list_retain_losses
from wagle_trainer.presets import PRESETS, apply_preset
from wagle_trainer.utils.checkpointing_names import use_current_names
from wagle_trainer.utils.secrets import without_secrets

# Where the flat name of an attribution's argument is not "attribution_" and its name.
_FLAT_NAMES = {
    "score_kwargs": "attribution_kwargs",
    "density": "density",
    "attribution_loss": "attribution_loss",
    "seed": "seed",
}
_ARGUMENTS = {one.name: one for one in fields(AttributionConfig)}


def _attribution_field(name: str, more: str = "") -> Any:
    """The field of `AttributionConfig` with its default, help text and choices."""
    argument = _ARGUMENTS[name]
    return field(default=argument.default, metadata={**argument.metadata, "help": argument.metadata["help"] + more})


@dataclass
class WagleConfig(SFTConfig):
    r"""
    Configuration of [`WagleTrainer`]: that of TRL's [`~trl.SFTConfig`], and the arguments below. Two defaults differ:
    on machines without a GPU that computes in bfloat16 `bf16` is off unless requested, since it is slow, and without a GPU
    `dataloader_pin_memory` is off.

    Parameters:
        loss_type (`str`, defaults to `"npo"`): Unlearning objective, one of `wagle_trainer.losses.list_losses()`.
        loss_kwargs (`dict`, *optional*): Arguments of the objective, such as `{"beta": 0.1}`; `"retain_loss"` chooses one
            of `wagle_trainer.losses.list_retain_losses()` or `None`, `"retain_kwargs"` its arguments, and `"retain_layer"`
            its decoder layer, unless the objective has one.
        forget_weight (`float`, defaults to `1.0`): Factor of the forget loss.
        retain_weight (`float`, defaults to `1.0`): Factor of the retain loss (lambda).
        attribution (`str`, *optional*, defaults to `"wagle"`): Score that chooses the weights, one of
            `wagle_trainer.attribution.list_scores()`; `None` (on the command line: `none`) trains all of them.
        attribution_kwargs, density, attribution_gamma, attribution_scope, ...: The fields of
            [`~wagle_trainer.AttributionConfig`], which documents them: `attribution_kwargs` is its `score_kwargs`,
            `density` its `density`, and `attribution_<name>` its `<name>`.
        mask_path (`str`, *optional*): A saved mask (folder or Hub id) to use; then nothing is computed.
        disable_dropout (`bool`, defaults to `False`): Train without dropout, as the outputs of the reference model are
            computed. The model gets its dropout back after training.
        router_aux_loss_coef (`float`, *optional*): Of a mixture of experts, factor of the load-balancing loss that is
            added to the objective; by default that of the model's configuration, as in `SFTTrainer`. `0.0` turns it off.
        lora_modules (`int`, *optional*): With `peft_config=LoraConfig(target_modules="wagle")` (or another score), the
            number of Linear modules to adapt; by default those that hold at least their part of the selected weights, see
            `wagle_trainer.adapters.lora.lora_modules`. The score is computed as `attribution_gamma`, `density` and so on say.
        compact_optimizer (`bool`, *optional*): Keep AdamW's moments for the selected weights only; the weights come out
            the same. By default where it saves memory: up to density 0.5, with `optim` one of PyTorch's AdamW, on one
            process or with data parallelism. `True` insists on it, `False` turns it off.
        compact_training (`bool`, *optional*): Keep gradients, moments and float32 master values of the selected weights
            only, see [`~wagle_trainer.masking.CompactUpdates`]. By default up to density 0.1, with an optimizer that updates
            each weight by itself, on one process, with data parallelism or with FSDP2. `True` insists on it, `False` turns it
            off.
        save_adapter (`bool`, defaults to `False`): Save what the mask let change as an adapter for PEFT, in place of the
            whole model, in checkpoints, too. See `wagle_trainer.adapters`.
        adapter_masters (`bool`, defaults to `False`): With `save_adapter` and a model in 16 bits, save the float32 master
            values; they are rounded where the adapter is applied.
        summary_rows (`int`, defaults to 32): Before and after training, measure how likely the answers of so many rows of
            the forget and of the retain set are, print it, and warn where nothing was forgotten; 0 turns it off. On one
            process or with data parallelism.
        save_full_model (`bool`, defaults to `False`): With `save_adapter`, save the whole model as well; the adapter is
            then in the subfolder `adapter`.
        preset (`str`, *optional*): Settings of a publication, for each field that you leave at its default:
            `"wagle-paper"` (TOFU: density 0.95 or 0.8 by objective, gamma 1e-6, learning rate, schedule, batch size)
            or `"wagle-paper-wmdp"`. `wagle_trainer.presets` lists the values and their sources.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*SFTConfig._VALID_DICT_FIELDS, "loss_kwargs", "attribution_kwargs"]

    loss_type: str = field(
        default="npo",
        metadata={"help": f"Unlearning objective: {', '.join(list_losses())}, or one that you registered."},
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Arguments of the objective as JSON, such as \'{"beta": 0.1, "retain_loss": "kl"}\'. Retain losses: '
            f"{', '.join(list_retain_losses())}, one that you registered, or null."
        },
    )
    forget_weight: float = field(default=1.0, metadata={"help": "Factor of the forget loss."})
    retain_weight: float = field(default=1.0, metadata={"help": "Factor of the retain loss (lambda)."})
    # Flat, for the command line and YAML; `attribution_config` puts them together.
    attribution: str | None = _attribution_field("score", " None ('none') trains all weights.")
    attribution_kwargs: dict[str, Any] | str | None = _attribution_field("score_kwargs")
    # With None in the union, the command line takes a string: a number or the name of a rule.
    attribution_gamma: float | str | None = _attribution_field("gamma")
    attribution_loss: str = _attribution_field("attribution_loss")
    attribution_scope: str = _attribution_field("scope")
    attribution_samples: int | None = _attribution_field("samples")
    attribution_batch_size: int | None = _attribution_field("batch_size")
    attribution_dtype: str = _attribution_field("dtype")
    attribution_offload: str | None = _attribution_field("offload")
    attribution_include: list[str] | None = _attribution_field("include")
    attribution_exclude: list[str] | None = _attribution_field("exclude")
    attribution_exclude_mask: str | None = _attribution_field("exclude_mask")
    density: float | str | None = _attribution_field("density")
    mask_path: str | None = field(
        default=None, metadata={"help": "A saved mask (folder or Hub id) to use; then nothing is computed."}
    )
    disable_dropout: bool = field(
        default=False,
        metadata={
            "help": "Train without dropout, as the outputs of the reference model are computed: at the first step, losses "
            "that compare with them are then zero."
        },
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
    compact_training: bool | None = field(
        default=None,
        metadata={
            "help": "Keep gradients, moments and float32 master values of the selected weights only, with any elementwise "
            "optimizer; by default up to density 0.1, where optim and engine allow it."
        },
    )
    save_adapter: bool = field(
        default=False,
        metadata={"help": "Save what the mask let change as an adapter for PEFT, in place of the whole model."},
    )
    adapter_masters: bool = field(
        default=False,
        metadata={
            "help": "With save_adapter and a model in 16 bits, save float32 master values; they are rounded where the adapter "
            "is applied."
        },
    )
    summary_rows: int = field(
        default=32,
        metadata={
            "help": "Rows of the forget and of the retain set whose answer probabilities are printed at the end, before and "
            "after; 0 turns it off."
        },
    )
    save_full_model: bool = field(
        default=False,
        metadata={"help": "With save_adapter, save the whole model as well; the adapter goes to a subfolder."},
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Settings of a publication, by objective, for each option that you leave out: wagle-paper (TOFU) or "
            "wagle-paper-wmdp.",
            "choices": list(PRESETS),
        },
    )

    def __post_init__(self) -> None:
        if self.preset is not None:
            apply_preset(self, self.preset, self.loss_type)
        if self.bf16 is None and not self.fp16:  # type: ignore[has-type]
            # TRL's default of bf16=True is many times slower than float32 on CPUs without bfloat16 units.
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if isinstance(self.attribution, str) and self.attribution.lower() in ("none", "null"):
            self.attribution = None
        use_current_names(self)
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # there is nothing to copy to, and torch warns of it in every run
        super().__post_init__()
        if not isinstance(self.loss_kwargs, dict | None):
            raise ValueError(
                f"loss_kwargs must be a dict, or JSON such as '{{\"beta\": 0.1}}', got {self.loss_kwargs!r}."
            )
        self.loss_kwargs = dict(self.loss_kwargs or {})
        get_loss(self.loss_type)
        if self.loss_kwargs.get("retain_loss") is not None:
            get_retain_loss(self.loss_kwargs["retain_loss"])
        for name in ("forget_weight", "retain_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be a finite number that is not negative, got {getattr(self, name)}: the signs of the losses "
                    "are those of their formulas."
                )
        if self.forget_weight == self.retain_weight == 0:
            raise ValueError("forget_weight and retain_weight are both 0: there is no loss. Set one of them.")
        self.attribution_gamma, self.density = _number_or_rule(self.attribution_gamma), _number_or_rule(self.density)
        self.attribution_config()
        if self.lora_modules is not None and self.lora_modules < 1:
            raise ValueError(f"lora_modules must be at least 1, got {self.lora_modules}.")
        if self.summary_rows < 0:
            raise ValueError(f"summary_rows must be 0 or more, got {self.summary_rows}.")
        if self.lr_scheduler_kwargs:
            _check_schedule(self.lr_scheduler_type, self.lr_scheduler_kwargs)
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what `training_args.bin` in checkpoints and saved models holds: no tokens, no passwords."""
        return without_secrets(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> WagleConfig:
        made = memo[id(self)] = self.__copy__()
        made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return made

    def __copy__(self) -> WagleConfig:
        made = object.__new__(type(self))
        made.__dict__.update(vars(self))
        return made

    def attribution_config(self, score: str | None = None, **changes: Any) -> AttributionConfig:
        """The flat fields as an `AttributionConfig`.

        Args:
            score: in place of `attribution`; without either, the default.
            changes: fields of `AttributionConfig` that take other values.

        Raises:
            ValueError: an argument is out of range or unknown.
        """
        names = _ARGUMENTS.keys() - {"score"}
        values = {name: getattr(self, _FLAT_NAMES.get(name, f"attribution_{name}")) for name in names}
        chosen = score or self.attribution
        return AttributionConfig(**values | ({"score": chosen} if chosen else {}) | changes)


def _check_schedule(name: Any, kwargs: dict[str, Any]) -> None:
    """Raise a ValueError for arguments that a learning rate schedule does not take; else training itself would."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        get_scheduler(
            name, optimizer, num_warmup_steps=1, num_training_steps=2, scheduler_specific_kwargs=dict(kwargs)
        )
    except TypeError as error:
        name = getattr(name, "value", name)
        raise ValueError(f"lr_scheduler_kwargs do not suit lr_scheduler_type={name!r}: {error}.") from error


def _number_or_rule(value: Any) -> Any:
    """A number that the command line gave as text; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
