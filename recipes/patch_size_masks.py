"""How a label of the patch study selects weights: "snip" is the score of that name, "wagle:1e-3" has a gamma, and "snip-body" is a
score over all weights but the input embeddings and the output head.
"""

from __future__ import annotations

import re
from typing import Any

from wagle_trainer.attribution import AttributionConfig, starting_rate
from wagle_trainer.forgetting.masks import word_weights

NO_MASK = "none"
_BODY = "-body"


def spread(label: str) -> tuple[str, float | str | None]:
    """Score and gamma of a label: "wagle:1e-6" is ("wagle", 1e-6), "snip-body" is ("snip-body", None)."""
    score, _, gamma = label.partition(":")
    if not gamma:
        return score, 1e-6 if score.removesuffix(_BODY) == "wagle" else None
    return score, _number_or_rule(gamma)


def _number_or_rule(gamma: str) -> float | str:
    try:
        return float(gamma)
    except ValueError:
        return gamma


def check_label(label: str) -> None:
    """Refuse a label that names no score, or a gamma that its score does not take.

    Raises:
        ValueError: see above; the message lists the scores, or says what a gamma may be.
    """
    score, colon, gamma = label.partition(":")
    config = AttributionConfig(score=score.removesuffix(_BODY))
    if not colon:
        return
    if "gamma" not in config.score_arguments:
        raise ValueError(f"{label!r}: the score {config.score!r} has no gamma. Write {score!r}.")
    try:
        AttributionConfig(score=config.score, gamma=_number_or_rule(gamma))
    except ValueError as error:
        raise ValueError(f"{label!r}: {error}") from None


def first_rate(label: str, density: float, base: float) -> float:
    """Where the search for a learning rate begins.

    Args:
        label: of the mask; "none" for all weights.
        density: its share.
        base: where the search begins for all weights.
    """
    score = None if label in (NO_MASK, "truth") else spread(label)[0].removesuffix(_BODY)
    return starting_rate(density, score, base)


def attribution_arguments(score: str, model: Any) -> dict[str, Any]:
    """The trainer's arguments for a score, which may be one without the embeddings."""
    if not score.endswith(_BODY):
        return {"attribution": score}
    patterns = [f"^{re.escape(name)}$" for name in word_weights(model)]
    return {"attribution": score.removesuffix(_BODY), "attribution_exclude": patterns}
