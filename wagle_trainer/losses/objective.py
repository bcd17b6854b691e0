"""The objective of a run: which losses its configuration asks for, and what these ask of the model and the engine."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING, Any

from torch import nn

from wagle_trainer.engines.engine import current_engine
from wagle_trainer.losses import UnlearningLoss, get_loss
from wagle_trainer.losses.unlearning_loss import NEEDS, example_of
from wagle_trainer.models.architecture import decoder_layer

if TYPE_CHECKING:
    from wagle_trainer.config import WagleConfig

RETAIN_SETTINGS = ("retain_loss", "retain_layer")  # of `loss_kwargs`; all else goes to the objective


def make_objective(config: WagleConfig) -> tuple[UnlearningLoss, str | None, int | None]:
    """The forget loss, the name of the retain loss, and the decoder layer whose hidden states the latter compares.

    Raises:
        ValueError: arguments that the loss does not take, needs that no trainer knows, or a loss that is nothing without
            the retain loss, which is turned off.
    """
    loss_kwargs: dict[str, Any] = dict(config.loss_kwargs)  # type: ignore[arg-type]
    loss = _make_loss(config.loss_type, loss_kwargs)
    retain_loss = loss_kwargs.get("retain_loss", loss.retain_loss)
    if (not loss.needs or overrides(loss, "step_end")) and (retain_loss is None or config.retain_weight == 0):
        raise ValueError(
            f"loss_type={config.loss_type!r} is nothing without its retain loss: set a retain_loss and a retain_weight."
        )
    return loss, retain_loss, loss_kwargs.get("retain_layer", loss.layer)


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


def overrides(loss: UnlearningLoss, method: str) -> bool:
    """Whether an objective has a method of its own in place of the one that does nothing."""
    return getattr(type(loss), method) is not getattr(UnlearningLoss, method)


def check_engine_for(loss: UnlearningLoss, loss_type: str, retain_loss: str | None) -> None:
    """Raise ValueError if the losses need a model in one piece, and the engine shards it."""
    engine = current_engine()
    if engine.holds_full_weights:
        return
    if retain_loss in ("kl", "js", "embed_diff"):
        raise ValueError(
            f"retain_loss={retain_loss!r} needs the {'layers' if retain_loss == 'embed_diff' else 'head'} in "
            f"one piece, but {engine.name} shards them. Use retain_loss='nll', or data parallelism."
        )
    whole = {"forget_reference_logits", "forget_states", "forget_reference_states"} & loss.needs
    if whole or overrides(loss, "penalty"):
        raise ValueError(
            f"loss_type={loss_type!r} needs {'hidden states or logits' if whole else 'the weights'} of a "
            f"model in one piece, but {engine.name} shards it. Use another objective, or data parallelism."
        )


def layers_for(
    loss: UnlearningLoss, loss_type: str, retain_loss: str | None, retain_layer: int | None, model: nn.Module
) -> dict[str, nn.Module]:
    """ "forget" and "retain" -> the layer of `model` whose hidden states the losses need.

    Raises:
        ValueError: no layer is named, or the model has no such layer.
    """
    layers = {}
    if "forget_states" in loss.needs:
        assert loss.layer is not None
        layers["forget"] = decoder_layer(model, loss.layer, f"loss_type={loss_type!r}")
    if retain_loss == "embed_diff":
        if retain_layer is None:
            raise ValueError(
                'retain_loss="embed_diff" needs a layer. Say which, counted from 0:\n'
                '  loss_kwargs={"retain_loss": "embed_diff", "retain_layer": 7}'
            )
        layers["retain"] = decoder_layer(model, retain_layer, "retain_loss='embed_diff'")
    return layers
