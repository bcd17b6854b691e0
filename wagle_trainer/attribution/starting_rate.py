"""Where to start with the learning rate of a patch."""

from __future__ import annotations

from wagle_trainer.attribution.scores.score import Score, arguments_of, get_score
from wagle_trainer.utils.percent import percent


def starting_rate(density: float, score: str | Score | None, dense_rate: float = 5e-5) -> float:
    """Return the learning rate to begin a search with, for a share of the weights.

    AdamW moves each weight by about the learning rate, so that the loss changes with the number of weights, the rate, and
    the mean size of their gradients. For weights that a score without gradients chose, that asks for dense_rate / density. The
    largest gradients are larger the fewer of them are taken: for the other scores it is dense_rate / sqrt(density), and for rows of
    target tokens, on which the loss depends most. The rates that
    one rule chose on SmolLM2-135M lie within a factor of six of it for SNIP, gradient and random, and up to eighteen times higher for
    curvature (`docs/guides/size-and-learning-rate.md`). It is a starting point for AdamW, and no recommendation.

    Args:
        density: share of the weights that may change, in (0, 1].
        score: that chose them: a registered name or a function; None where all weights may change.
        dense_rate: learning rate that suits all weights of the model.

    Raises:
        ValueError: unknown score, or a density out of range.

    Example:
        >>> f"{starting_rate(0.01, 'gradient'):.0e} {starting_rate(0.01, 'random'):.0e} {starting_rate(1.0, None):.0e}"
        '5e-04 5e-03 5e-05'
    """
    if not 0 < density <= 1:
        raise ValueError(f"The density must be in (0, 1], got {density}.")
    return dense_rate / (density**0.5 if score is None or _finds_large_gradients(score) else density)


def _finds_large_gradients(score: str | Score) -> bool:
    """Whether weights are chosen by gradients, or as rows of target tokens."""
    return any(name.endswith(("_grad", "_square", "_targets")) for name in arguments_of(get_score(score)))


# A rate further below the starting one than this is likely to forget nothing. Models differ: the paper trains
# 7 billion weights with a fifth of the rate that suits 135 million here.
_FAR_BELOW = 10


def why_too_low(rate: float, density: float, score: str | Score | None) -> str | None:
    """Return a warning where a learning rate suits all weights and not so few of them, else None.

    Args:
        rate: learning rate of an optimizer such as AdamW.
        density, score: as in `starting_rate`; a score that is not known here counts as one that reads gradients.
    """
    try:
        start = starting_rate(density, score)
    except ValueError:
        start = starting_rate(density, None)
    if rate * _FAR_BELOW >= start:
        return None
    return (
        f"A learning rate of {rate:g} is low for {percent(density)} of the weights: a small patch needs larger steps than all weights "
        f"do. Where all weights take 5e-05, begin with about {start:.1g}, and raise it by factors of three until enough is forgotten."
    )
