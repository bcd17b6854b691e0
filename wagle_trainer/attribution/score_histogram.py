"""How the scores of a model are distributed, in a few hundred numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXPONENTS = 256  # values of a float32's exponent field
_BIAS = 127

Counts = NDArray[np.int64]


class ScoreHistogram:
    """How many scores lie between neighbouring powers of two, and how many of them are selected.

    It is made of the counts that the selection makes anyway, by sign, exponent and upper mantissa bits, and so costs
    next to nothing. Counts of tensors and shards add up. Scores below 2^-134 count as zero.
    """

    def __init__(self) -> None:
        self.threshold: float | None = None
        # Zeros come first, then one count for each exponent.
        self._scores, self._selected = (np.zeros(1 + _EXPONENTS, dtype=np.int64) for _ in range(2))

    def add(self, counts: Counts, number: int) -> None:
        """Count scores in; the `number` highest are selected.

        Args:
            counts: how many scores there are by their upper bits, as the selection counts them; lowest first.
            number: how many of them are selected.
        """
        scores = _by_exponent(counts)
        self._scores += scores
        up_to = scores[::-1].cumsum()[::-1]  # of each bin and all above it
        self._selected += np.clip(number - (up_to - scores), 0, scores)

    def add_counts(self, counts: Counts, selected: Counts) -> None:
        """Count scores in, and those of them that are selected, wherever they lie."""
        self._scores += _by_exponent(counts)
        self._selected += _by_exponent(selected)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold: `scores[i]` and `selected[i]` count those in [2^(first_exponent + i), twice that); the
        `zero_...` those that are zero; `threshold` is the lowest selected score, None where each tensor or row has its
        own."""
        used = np.flatnonzero(self._scores[1:])
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (_BIAS, _BIAS)
        return {
            "first_exponent": first - _BIAS,
            "scores": self._scores[1 + first : 1 + last].tolist(),
            "selected": self._selected[1 + first : 1 + last].tolist(),
            "zero_scores": int(self._scores[0]),
            "zero_selected": int(self._selected[0]),
            "threshold": self.threshold,
        }


def _by_exponent(counts: Counts) -> Counts:
    positive = counts[: len(counts) // 2]  # the upper half is that of the sign bit
    zeros = positive[:1]
    exponents = positive.reshape(_EXPONENTS, -1).sum(1)
    exponents[0] -= zeros[0]
    return np.concatenate([zeros, exponents])
