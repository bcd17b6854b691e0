"""The base class of forget losses, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.utils.registry import Registry


class UnlearningLoss:
    """A loss on the forget set; the retain loss is chosen apart from it.

    A subclass names in `needs` what it reads from `LossInputs`: "forget" and "chosen" (log-probabilities of these
    answers), "reference" (log-probabilities of the same answers under the reference model), and for either split, such as
    "forget", also "forget_logits", "forget_states", "forget_reference_logits", "forget_reference_states". `forget_loss`
    returns one loss per example, so that gradient accumulation and several processes give what one large batch gives.
    The other methods serve the few objectives that do more.

    Attributes:
        needs: see above. If it is empty, there is no forget term, and `forget_loss` is never called.
        retain_loss: name of the retain loss, unless `loss_kwargs` name another one.
        accepts_refusals: whether refusals may stand for the chosen answers where the forget set has none.
        layer: index of the decoder layer whose hidden states are needed.

    Example:
        >>> @register_loss("bounded_ascent")
        ... class BoundedAscent(UnlearningLoss):
        ...     needs = frozenset({"forget"})
        ...
        ...     def __init__(self, floor: float = -5.0):
        ...         self.floor = floor
        ...
        ...     def forget_loss(self, inputs):
        ...         return inputs.forget.mean().clamp(min=self.floor)
    """

    needs: frozenset[str] = frozenset({"forget"})
    retain_loss: ClassVar[str | None] = "nll"
    accepts_refusals: ClassVar[bool] = True
    layer: int | None = None

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        """Return one loss per forget example, (batch,).

        Args:
            inputs: outputs of the model and of the reference model on a batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forget_loss(inputs) -> (batch,) tensor.")

    def check_answers(self, lengths: Sequence[int]) -> None:
        """Raise ValueError, or warn, if the objective cannot learn from answers of these numbers of target tokens.

        Args:
            lengths: target tokens of each answer.
        """

    def setup(self, tokenizer: Any, seed: int) -> None:
        """Prepare for a run; called once, before training.

        Args:
            tokenizer: the model's.
            seed: of the run.
        """

    def penalty(self, model: nn.Module, progress: float) -> Tensor | None:
        """Return a term on the weights, once per optimizer step; `progress` goes from 0 to 1 over the run.

        Args:
            model: that is trained.
            progress: share of the steps that are done, from 0 to 1.
        """
        return None

    def retain_factor(self) -> float:
        """Return the factor of the retain loss, on top of `retain_weight`."""
        return 1.0

    def step_end(self, retain_loss: float, epoch: float) -> None:
        """Adapt after an optimizer step, given the mean retain loss of its examples on all processes.

        Args:
            retain_loss: mean over the examples of the step.
            epoch: as a fraction.
        """

    def state(self) -> dict[str, Tensor]:
        """Return what changes while training; checkpoints hold it, and a resumed run gets it back."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the `state` of a checkpoint.

        Args:
            state: what `state` gave.
        """


_losses: Registry[type[UnlearningLoss]] = Registry("loss")
Loss = TypeVar("Loss", bound=type[UnlearningLoss])


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Register an `UnlearningLoss` subclass for `WagleConfig(loss_type=name)`.

    Args:
        name: of the objective.
    """
    return _losses.register(name)  # type: ignore[return-value]


def get_loss(name: str) -> type[UnlearningLoss]:
    """Return the class of a forget loss.

    Args:
        name: a registered name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return _losses.get(name)


def example_of(name: str) -> str:
    """Return the code in the docstring of a forget loss, for errors about its arguments."""
    from doctest import DocTestParser

    return "".join(example.source for example in DocTestParser().get_examples(get_loss(name).__doc__ or ""))


def list_losses() -> list[str]:
    """Names of all registered forget losses."""
    return _losses.names()


def describe_losses() -> dict[str, str]:
    """Name -> first paragraph of the docstring, of all registered forget losses: the table in the README."""
    return _losses.describe()
