"""What an unlearning objective is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from wagle_trainer.models.log_probs import TokenLogProbs
from wagle_trainer.utils.registry import Registry

NEEDS = frozenset(
    {
        "forget",
        "preferred",
        "reference",
        "forget_logits",
        "forget_states",
        "forget_reference_logits",
        "forget_reference_states",
    }
)


@dataclass
class Signals:
    """What the trainer computed for one batch of forget examples; None for what the objective did not ask for.

    Attributes:
        forget: log-probabilities of the answers to forget; with logits or hidden states if they are needed.
        preferred: log-probabilities of the answers to give instead.
        forget_reference, preferred_reference: (batch,) log-probability of each whole answer under the model as it was
            before unlearning.
        forget_reference_tokens, preferred_reference_tokens: the same per token, aligned with `forget.log_probs` and
            `preferred.log_probs`; zero where there is no label.
        forget_reference_logits: (label tokens, vocabulary), as `forget.label_logits()` but of the model before.
        forget_reference_states: (label tokens, hidden size), as `forget.label_states()` but of the model before.
        rows: (batch,) which rows of the forget set the examples are.
    """

    forget: TokenLogProbs | None = None
    preferred: TokenLogProbs | None = None
    forget_reference: Tensor | None = None
    preferred_reference: Tensor | None = None
    forget_reference_tokens: Tensor | None = None
    preferred_reference_tokens: Tensor | None = None
    forget_reference_logits: Tensor | None = None
    forget_reference_states: Tensor | None = None
    rows: Tensor | None = None


class UnlearningLoss:
    """One objective: what is done to the forget examples. The retain loss is chosen apart from it.

    A subclass states in `needs` what it reads from `Signals`, and gets just that: "forget" and "preferred" (the
    log-probabilities of these answers), "reference" (those of the model before, for whichever of the two it needs),
    and with "forget" also "forget_logits", "forget_states", "forget_reference_logits", "forget_reference_states". It
    returns one loss per example from `forget_loss`, so that gradient accumulation and several processes give what one
    large batch gives. The other methods are for the few objectives that do more.

    Attributes:
        needs: see above. Empty: there is no forget term, and `forget_loss` is never called.
        retain_loss: the retain loss that goes with this objective unless `loss_kwargs` say otherwise.
        refusals_will_do: whether preferred answers may be the refusals where the forget set has none.
        layer: index of the decoder layer whose hidden states are needed.

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

    needs: frozenset[str] = frozenset({"forget"})
    retain_loss: ClassVar[str | None] = "nll"
    refusals_will_do: ClassVar[bool] = True
    layer: int | None = None

    def forget_loss(self, signals: Signals) -> Tensor:
        """One loss per forget example, (batch,)."""
        raise NotImplementedError(f"{type(self).__name__} must define forget_loss(signals) -> (batch,) tensor.")

    def setup(self, tokenizer: Any, seed: int) -> None:
        """Called once, before training."""

    def penalty(self, model: nn.Module, progress: float) -> Tensor | None:
        """A term on the weights, once per optimizer step; `progress` goes from 0 to 1 over the run."""
        return None

    def retain_factor(self) -> float:
        """Factor of the retain loss, on top of `retain_weight`."""
        return 1.0

    def step_end(self, retain_loss: float, epoch: float) -> None:
        """Called after every optimizer step with the mean retain loss of its examples on all processes."""

    def state(self) -> dict[str, Tensor]:
        """What changes while training and must come back on resume; saved in every checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The opposite of `state`."""


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


def example_of(name: str) -> str:
    """The code in the docstring of an objective, for the errors of those who call it otherwise."""
    from doctest import DocTestParser

    return "".join(example.source for example in DocTestParser().get_examples(get_loss(name).__doc__ or ""))


def list_losses() -> list[str]:
    """Names of all registered objectives."""
    return _losses.names()


def describe_losses() -> dict[str, str]:
    """Name -> first paragraph of the docstring, of all registered objectives: the table in the README."""
    return _losses.describe()
