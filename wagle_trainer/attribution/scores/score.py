"""What an attribution score is, and the table of all of them.

A score is a function that says how much each weight matters for forgetting: higher means more important.

It is called once per parameter with those of these arguments that it names:

    weight              the parameter of the reference model
    name                its name in `named_parameters()`
    forget_grad         gradient of the forget loss, float32, same shape
    retain_grad         gradient of the retain loss, float32, same shape
    forget_square       mean over the forget examples of their own squared gradients, float32, same shape; costs one
                        backward pass per example instead of one per batch; where weights are sharded, one process after the other
    retain_square       the same of the retain examples
    forget_activation   root mean square over the forget set's tokens of each input feature of the matrix, float32, in a
                        shape that broadcasts against the weight: (in,) for `nn.Linear`, (in, 1) for Conv1D,
                        (experts, 1, in) for fused experts. None for parameters without inputs (embeddings, norms).
                        Padding does not count; a head that only runs on target tokens sees those positions
    retain_activation   the same over the retain set's tokens
    forget_targets      how often each token is a target in the forget set, float32 (rows, 1); those that begin, end or pad a
                        text are zero. None for all parameters but the weight of the output head, which may be that of the
                        embeddings
    retain_targets      the same of the retain set
    gamma               the scale of the lower-level Hessian, > 0
    generator           a seeded torch.Generator on the CPU, different for every parameter
    layout              the `WeightMatrix` of the parameter: layout.flat_rows(tensor) are the rows of its (out, in) matrices

and returns a non-negative, finite tensor of the parameter's shape, or None for a parameter that it cannot rank. Such a
parameter is frozen and is not in the mask: its weights are no candidates, and the density is of the others. Naming an argument is what makes it be computed.
Other arguments need a default; `score_kwargs` (`attribution_kwargs` in `WagleConfig`) sets them.

Module-wise scores give all weights of a tensor one value. Then the density cuts through the tensor at the threshold:
its first weights are selected, as for all ties.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from wagle_trainer.utils.registry import Registry

Score = Callable[..., Any]  # a Tensor, or None for a parameter that the score cannot rank
SETS = ("forget", "retain")
STATISTICS = ("grad", "square", "activation", "targets")
ARGUMENTS = (
    "weight",
    "name",
    *(f"{which}_{what}" for what in STATISTICS for which in SETS),
    "gamma",
    "generator",
    "layout",
)

_scores: Registry[Score] = Registry("attribution score")


def register_score(name: str) -> Callable[[Score], Score]:
    """Decorator: enter a score function under `name`.

    Args:
        name: of the score.

    Example:
        >>> @register_score("forget_over_weight")
        ... def forget_over_weight(weight, forget_grad):
        ...     return forget_grad.abs() / (weight.abs() + 1e-8)

    Raises:
        ValueError: the name is taken.
        TypeError: the function has an argument that scores do not get.
    """

    def enter(score: Score) -> Score:
        arguments_of(score)
        return _scores.register(name)(score)

    return enter


def get_score(score: str | Score) -> Score:
    """A score function by name; a function is returned as it is.

    Args:
        score: a registered name, or a score function.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return score if callable(score) else _scores.get(score)


def list_scores() -> list[str]:
    """Names of all registered scores."""
    return _scores.names()


def describe_scores() -> dict[str, str]:
    """Name -> first paragraph of the docstring, of all registered scores: the table in the README."""
    return _scores.describe()


def with_options(score: str | Score, options: Mapping[str, Any] | None) -> Score:
    """A score function by name, with its options set.

    Args:
        score: a registered name, or a score function.
        options: keyword arguments of the function.

    Raises:
        ValueError: unknown score, or an option that the score does not have; the message lists those that it has.
    """
    function = get_score(score)
    parameters = inspect.signature(function).parameters
    known = [name for name, p in parameters.items() if name not in ARGUMENTS and p.kind is not p.VAR_KEYWORD]
    for option in options or ():
        if option not in known:
            raise ValueError(
                f"The score {name_of(score)!r} has no option {option!r}. "
                + (f"It has: {', '.join(known)}." if known else "It has none.")
            )
    return functools.partial(function, **options) if options else function


def name_of(score: str | Score) -> str:
    """What a score is called in files and messages.

    Args:
        score: a registered name, or a score function.
    """
    return score if isinstance(score, str) else getattr(score, "__name__", type(score).__name__)


def needed_statistics(score: Score, gamma: float | str, density: float | str) -> dict[str, set[str]]:
    """Which of `STATISTICS` of which set are needed to score and select, by set; sets that are not needed are left out.

    A gamma chosen by rule needs the retain gradient, a density chosen by rule both.

    Args:
        score: a registered name, or a score function.
        gamma: a number, or the name of a rule.
        density: a number, or the name of a rule.
    """
    arguments = arguments_of(score)
    needs = {which: {what for what in STATISTICS if f"{which}_{what}" in arguments} for which in SETS}
    if "gamma" in arguments and isinstance(gamma, str):
        needs["retain"].add("grad")
    if isinstance(density, str):
        for which in SETS:
            needs[which].add("grad")
    return {which: what for which, what in needs.items() if what}


def arguments_of(score: Score) -> list[str]:
    """Which of `ARGUMENTS` a score takes.

    Args:
        score: a score function.

    Raises:
        TypeError: it has another argument without a default.
    """
    parameters = inspect.signature(score).parameters
    unknown = [name for name, p in parameters.items() if name not in ARGUMENTS and p.default is p.empty]
    if unknown:
        raise TypeError(
            f"The score {name_of(score)!r} takes {', '.join(map(repr, unknown))}; "
            f"a score can take {', '.join(ARGUMENTS)}."
        )
    return [name for name in parameters if name in ARGUMENTS]
