"""`MaskInfo`: how a weight mask came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MaskInfo:
    """How a mask came about. Every field may be None: a mask can also be made by hand.

    Attributes:
        score: name of the attribution score.
        score_kwargs: its options.
        gamma: the Hessian scale of the WAGLE score.
        gamma_rule: "auto" or "balanced", if gamma was chosen by rule.
        requested_density: the density requested; `WeightMask.density` is what rounding down made of it.
        density_rule: "auto", if that density was chosen by rule.
        scope: "global", "tensor" or "row".
        include, exclude: regular expressions that chose the parameters to score.
        exclude_mask: digest of the mask whose weights were no candidates.
        seed: of the random score.
        base_model: name or path of the model that was scored.
        unranked_weights: number of weights in parameters that the score cannot rank; they are frozen and not in the mask.
        effective_density: share of selected weights among those whose forget or retain gradient is not zero; of the
            gradients that the score needs, so None for scores that look at no data.
        forget_examples, retain_examples: numbers of examples that the gradients were averaged over.
        forget_digest, retain_digest: HMAC-SHA256 of the tokens and labels of the sets under the key in the environment
            variable WAGLE_DIGEST_KEY, for whoever has the key to prove which sets they were; None without a key.
        score_histogram: how the scores are distributed and which of them are selected, as
            `wagle_trainer.attribution.score_histogram.ScoreHistogram` gives it; candidates only.
    """

    score: str | None = None
    score_kwargs: dict[str, Any] | None = None
    gamma: float | None = None
    gamma_rule: str | None = None
    requested_density: float | None = None
    density_rule: str | None = None
    scope: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    exclude_mask: str | None = None
    seed: int | None = None
    base_model: str | None = None
    unranked_weights: int | None = None
    effective_density: float | None = None
    forget_examples: int | None = None
    retain_examples: int | None = None
    forget_digest: str | None = None
    retain_digest: str | None = None
    score_histogram: dict[str, Any] | None = None
