"""The base class of retain losses, and their registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.utils.registry import Registry


class RetainLoss:
    """A loss on the retain set: it holds the model where it is.

    A subclass names in `needs` what it reads from `LossInputs`: "retain" (log-probabilities of the answers),
    "retain_logits", "retain_states", "reference" (log-probabilities under the reference model),
    "retain_reference_logits", "retain_reference_states". `retain_loss` returns one loss per example, so that gradient
    accumulation and several processes give what one large batch gives.

    Attributes:
        needs: see above.
        layer: index of the decoder layer whose hidden states are needed; `loss_kwargs={"retain_layer": ...}` sets it,
            and otherwise it is that of the forget loss.

    Example:
        >>> @register_retain_loss("hinge")
        ... class Hinge(RetainLoss):
        ...     needs = frozenset({"retain", "reference"})
        ...
        ...     def retain_loss(self, inputs):
        ...         return (inputs.retain_reference - inputs.retain.sum()).clamp(min=0)
    """

    needs: frozenset[str] = frozenset({"retain"})
    layer: int | None = None

    def retain_loss(self, inputs: LossInputs) -> Tensor:
        """Return one loss per retain example, (batch,).

        Args:
            inputs: outputs of the model and of the reference model on a batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define retain_loss(inputs) -> (batch,) tensor.")


_retain_losses: Registry[type[RetainLoss]] = Registry("retain loss")
Loss = TypeVar("Loss", bound=type[RetainLoss])


def register_retain_loss(name: str) -> Callable[[Loss], Loss]:
    """Register a `RetainLoss` subclass for `loss_kwargs={"retain_loss": name}`.

    Args:
        name: of the loss.
    """
    return _retain_losses.register(name)  # type: ignore[return-value]


def get_retain_loss(name: str) -> type[RetainLoss]:
    """Return the class of a retain loss.

    Args:
        name: a registered name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return _retain_losses.get(name)


def list_retain_losses() -> list[str]:
    """Names of all registered retain losses."""
    return _retain_losses.names()


def describe_retain_losses() -> dict[str, str]:
    """Name -> first paragraph of the docstring, of all registered retain losses."""
    return _retain_losses.describe()
