"""The objective of a run: its forget and retain loss, their weights, and what they need: `Objective`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from textwrap import indent
from typing import Any

from torch import Tensor, nn

from wagle_trainer.engines.engine import current_engine
from wagle_trainer.losses import RetainLoss, UnlearningLoss, get_loss, get_retain_loss
from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.needs import NEEDS, SPLITS, resolve
from wagle_trainer.losses.unlearning_loss import example_of
from wagle_trainer.models.architecture import decoder_layer
from wagle_trainer.models.reference_log_probs import check_head_is_linear, required_head

# Of `loss_kwargs`; all else goes to the forget loss.
RETAIN_SETTINGS = ("retain_loss", "retain_layer", "retain_kwargs")


@dataclass(frozen=True)
class Objective:
    """`forget_weight * forget loss + retain_weight * retain loss`, and everything that a run must provide for it.

    Attributes:
        loss_type, retain_type: registered names of the losses; `retain_type` is None without a retain loss.
        forget, retain: the losses; `retain` is None without a retain loss, or if its weight is zero.
        forget_weight, retain_weight: their factors.
    """

    loss_type: str
    forget: UnlearningLoss
    retain_type: str | None = None
    retain: RetainLoss | None = None
    forget_weight: float = 1.0
    retain_weight: float = 1.0

    @classmethod
    def from_arguments(
        cls,
        loss_type: str,
        loss_kwargs: Mapping[str, Any] | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
    ) -> Objective:
        """Make the objective that the arguments of a run name.

        Args:
            loss_type: a name of `list_losses()`.
            loss_kwargs: arguments of the forget loss; besides, `retain_loss` (a name of `list_retain_losses()`, or
                None), `retain_kwargs` (its arguments) and `retain_layer` (its decoder layer).
            forget_weight, retain_weight: factors of the losses.

        Raises:
            ValueError: unknown losses, arguments that a loss does not take, needs that are unknown, or a loss that is
                nothing without the retain loss, which is turned off.
        """
        loss_kwargs = dict(loss_kwargs or {})
        kwargs = {key: value for key, value in loss_kwargs.items() if key not in RETAIN_SETTINGS}
        forget = _make(f"loss {loss_type!r}", get_loss(loss_type), kwargs, "loss_kwargs", example_of(loss_type))
        retain_type = loss_kwargs.get("retain_loss", forget.retain_loss)
        retain = None
        if retain_type is not None and retain_weight != 0:
            kwargs = dict(loss_kwargs.get("retain_kwargs") or {})
            retain = _make(f"retain loss {retain_type!r}", get_retain_loss(retain_type), kwargs, "retain_kwargs")
            if "retain_layer" in loss_kwargs or retain.layer is None:
                retain.layer = loss_kwargs.get("retain_layer", forget.layer)
        if (not forget.needs or overrides(forget, "step_end")) and retain is None:
            raise ValueError(
                f"loss_type={loss_type!r} is nothing without its retain loss: set a retain_loss and a retain_weight."
            )
        objective = cls(loss_type, forget, retain_type, retain, forget_weight, retain_weight)
        _ = objective.needs  # refuses unknown ones
        return objective

    @cached_property
    def needs(self) -> dict[str, str]:
        """Names in the table `NEEDS` -> the setting that needs them, for errors."""
        needs = dict.fromkeys(resolve(self.forget.needs, f"The loss {self.loss_type!r}"), self._forget_setting)
        if self.retain is not None:
            for name in resolve(self.retain.needs, f"The retain loss {self.retain_type!r}"):
                needs.setdefault(name, self._retain_setting)
        return needs

    @property
    def _forget_setting(self) -> str:
        return f"loss_type={self.loss_type!r}"

    @property
    def _retain_setting(self) -> str:
        return f"retain_loss={self.retain_type!r}"

    @property
    def splits(self) -> list[str]:
        """The splits whose examples go through the model."""
        return [split for split in SPLITS if split in self.needs]

    def keeping(self, what: str) -> list[str]:
        """The splits whose forward pass keeps `what`: "logits" or "states"."""
        kept = {NEEDS[name].split for name in self.needs if NEEDS[name].keep == what}
        return [split for split in SPLITS if split in kept]

    def references(self, what: str) -> dict[str, str]:
        """Split -> the setting that needs this output of the reference model: "log_probs", "logits" or "states"."""
        return {NEEDS[name].split: setting for name, setting in self.needs.items() if NEEDS[name].reference == what}

    def check_engine(self) -> None:
        """Raise ValueError if the forget loss has a penalty on the weights, and the engine shards them."""
        engine = current_engine()
        if engine.gathers_weights_in_forward and overrides(self.forget, "penalty"):
            raise ValueError(
                f"{self._forget_setting} has a penalty on the weights, but {engine.name} shards them. Use another "
                "loss_type, or data parallelism."
            )

    def check_head(self, model: nn.Module) -> None:
        """Raise ValueError if a loss needs logits of the reference model, and its head cannot give them."""
        for setting in self.references("logits").values():
            head, engine = required_head(model, setting), current_engine()
            if engine.gathers_weights_in_forward:
                check_head_is_linear(head, setting, engine.name)

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the layer of `model` whose hidden states are needed, by split.

        Raises:
            ValueError: no layer is named, or the model has no such layer.
        """
        layers = {}
        for split in self.keeping("states"):
            setting = next(
                setting
                for name, setting in self.needs.items()
                if NEEDS[name].split == split and NEEDS[name].keep == "states"
            )
            loss: Any = self.forget if setting == self._forget_setting else self.retain
            if loss.layer is None:
                example = "layer" if loss is self.forget else "retain_layer"
                raise ValueError(f'{setting} needs a layer. Say which, counted from 0: loss_kwargs={{"{example}": 7}}')
            layers[split] = decoder_layer(model, loss.layer, setting)
        return layers

    def losses(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Return "forget_loss" and "retain_loss", as far as there are such terms, (batch,) each and without weights."""
        losses = {}
        if self.forget.needs:
            losses["forget_loss"] = self.forget.forget_loss(inputs)
        if self.retain is not None:
            losses["retain_loss"] = self.retain.retain_loss(inputs)
        return losses

    def weights(self) -> dict[str, float]:
        """Return the present factors of what `losses` returns."""
        return {"forget_loss": self.forget_weight, "retain_loss": self.retain_weight * self.forget.retain_factor()}


def overrides(loss: UnlearningLoss, method: str) -> bool:
    """Whether a forget loss defines this method, which does nothing in the base class."""
    return getattr(type(loss), method) is not getattr(UnlearningLoss, method)


def _make(what: str, loss: Any, kwargs: dict[str, Any], argument: str, example: str = "") -> Any:
    try:
        return loss(**kwargs)
    except TypeError as error:
        example = indent(example, "  ").rstrip()
        raise ValueError(
            f"{argument}={kwargs} do not fit the {what}: {error}." + (f" For example:\n{example}" if example else "")
        ) from error
