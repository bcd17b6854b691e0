"""gamma and density by rule: "auto" and "balanced". Each rule reads one pass over the sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from wagle_trainer.attribution.selection import Reduce, find_threshold, weighted_histogram

GAMMA_RULES = ("auto", "balanced")
# What density="auto" falls back to: the lower end of what the paper uses on TOFU (arXiv 2410.17509, section 6).
FALLBACK_DENSITY = 0.8
# A knee this far from the diagonal is taken for one. Scores that know nothing of the sets stay below it.
CLEAR_GAIN = 0.1
_DENSITIES = np.arange(1, 101) / 100

Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def choose_gamma(rule: str, pairs: Pairs, reduce: Reduce) -> float:
    """gamma from the scale of the retain gradient, over the weights where it is not zero.

    "auto"      gamma = sqrt(mean(g_r^2)). Quasi-Newton methods of the AdaGrad family put the root of the gradient's
                second moment in the place of the Hessian's diagonal; its mean over weights is the multiple of the
                identity that WAGLE assumes (arXiv 2410.17509, Remark 1). g_r / gamma is then of the order of one.
    "balanced"  gamma = median |g_r| / median |theta|: both terms of theta - g_r / gamma weigh the same in the median.

    Both scale with the retain loss, as a Hessian does, and depend on the mean gradient alone: repeating the retain set
    changes neither.

    Args:
        rule: one of `GAMMA_RULES`.
        pairs: gives (weight, retain gradient) tensor by tensor, as often as it is called: of all parameters, or of the
            rows on this process.
        reduce: sums a tensor over processes in place, when each has rows of its own.

    Raises:
        ValueError: the retain gradient, or (for "balanced") the median weight, is zero.
        FloatingPointError: the retain gradient is not finite.
    """
    squares = torch.zeros(2, dtype=torch.float64)  # their number, their sum
    for _, grad in pairs():
        squares += torch.stack([(grad != 0).sum().double(), grad.double().square().sum()]).cpu()
    reduce(squares)
    number, total = squares.tolist()
    if not math.isfinite(total):
        raise FloatingPointError(
            f"The retain gradient is not finite, so gamma={rule!r} has no value. Nothing was written."
        )
    if total == 0:
        raise ValueError(
            f"gamma={rule!r} is the scale of the retain gradient, but that is zero for every weight: give "
            "attribution_gamma a number, or check the retain set."
        )
    if rule == "auto":
        return math.sqrt(total / number)

    def median(values: Callable[[Tensor, Tensor], Tensor]) -> float:
        magnitudes = _Repeatable(lambda: (values(*pair) for pair in pairs()))
        pattern = find_threshold(magnitudes, int(number) // 2 + 1, reduce).bits  # the lower median
        return np.int32(pattern).view(np.float32).item()

    gradient = median(lambda weight, grad: grad[grad != 0].abs())
    weight = median(lambda weight, grad: weight[grad != 0].float().abs())
    if weight == 0:
        raise ValueError('gamma="balanced" divides by the median |weight|, but that is zero: use "auto", or a number.')
    return gradient / weight


class _Repeatable:
    """An iterable that starts again each time."""

    def __init__(self, start: Callable[[], Iterator[Tensor]]):
        self.start = start

    def __iter__(self) -> Iterator[Tensor]:
        return self.start()


class DensityCurve:
    """Gain and cost of a higher density, and the density where the difference is largest.

    With the weights ordered by their scores, highest first, let F(d) be the share of sum |g_f| and R(d) that of
    sum |g_r| that the first share d of them holds. An Adam step moves every weight by about the learning rate, so to
    first order F(d) is the speed of forgetting that a mask of density d keeps, and R(d) how far it can hurt the retain
    loss. The rule: the d, a multiple of 0.01, with the largest F(d) - R(d), where both curves are furthest apart.

    The curves are known at the edges of 65,536 bins of scores, and linear between them.
    """

    def __init__(self) -> None:
        self.sums: np.ndarray | None = None

    def add(self, score: Tensor, forget_grad: Tensor, retain_grad: Tensor) -> None:
        """Count one tensor in."""
        sums = weighted_histogram(score, [forget_grad.abs(), retain_grad.abs()])
        self.sums = sums if self.sums is None else self.sums + sums

    def gains(self) -> np.ndarray:
        """F(d) - R(d) at each multiple of 0.01 up to 1; zeros where a set has no gradient."""
        assert self.sums is not None
        used = self.sums[:, self.sums[0] > 0][:, ::-1]
        if not used.size or not (used[1:].sum(1) > 0).all():
            return np.zeros(len(_DENSITIES))
        share, forget, retain = np.concatenate([np.zeros((3, 1)), used.cumsum(1) / used.sum(1, keepdims=True)], axis=1)
        return np.interp(_DENSITIES, share, forget - retain)

    def choose(self) -> tuple[float, float]:
        """The density with the largest gain, and that gain."""
        gains = self.gains().round(6)  # so that rounding does not decide between neighbours
        best = int(gains.argmax())
        return float(_DENSITIES[best]), float(gains[best])
