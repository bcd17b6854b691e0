"""What an unlearning objective is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import Tensor

from wagle_trainer.likelihood import TokenLogProbs
from wagle_trainer.registry import Registry


@dataclass
class Signals:
    """What the trainer computed for one batch of forget examples; None for what the objective did not ask for.

    Attributes:
        forget: log-probabilities of the answers to forget.
        preferred: log-probabilities of the answers to give instead.
        forget_reference, preferred_reference: (batch,) log-probability of each whole answer under the model as it was
            before unlearning.
    """

    forget: TokenLogProbs | None = None
    preferred: TokenLogProbs | None = None
    forget_reference: Tensor | None = None
    preferred_reference: Tensor | None = None


class UnlearningLoss:
    """One objective: what is done to the forget examples. The retain loss is chosen apart from it.

    A subclass states in `needs` which of "forget", "preferred" and "reference" it reads from `Signals` ("reference"
    gives the reference values of whichever answers it needs), and returns one loss per example from `forget_loss`, so
    that gradient accumulation and several processes give what one large batch gives.

    Attributes:
        needs: see above.
        retain_loss: the retain loss that goes with this objective unless `loss_kwargs` say otherwise.

    Example:
        >>> @register_loss("bounded_ascent")
        ... class BoundedAscent(UnlearningLoss):
        ...     needs = frozenset({"forget"})
        ...
        ...     def __init__(self, floor: float = -5.0):
        ...         self.floor = floor
        ...
        ...     def forget_loss(self, signals):
        ...         return signals.forget.mean().clamp(min=self.floor)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    retain_loss: ClassVar[str | None] = "nll"

    def forget_loss(self, signals: Signals) -> Tensor:
        """One loss per forget example, (batch,)."""
        raise NotImplementedError(f"{type(self).__name__} must define forget_loss(signals) -> (batch,) tensor.")


_losses: Registry[type[UnlearningLoss]] = Registry("loss")
Loss = TypeVar("Loss", bound=type[UnlearningLoss])


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Decorator: enter an `UnlearningLoss` subclass under `name`, for `WagleConfig(loss_type=name)`."""
    return _losses.register(name)  # type: ignore[return-value]


def get_loss(name: str) -> type[UnlearningLoss]:
    """The class of an objective.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return _losses.get(name)


def list_losses() -> list[str]:
    """Names of all registered objectives."""
    return _losses.names()
