"""How a label of the patch study selects weights: "snip" is the score of that name, "wagle:1e-3" has a gamma, and "snip-body" is a
score over all weights but the input embeddings and the output head.
"""

from __future__ import annotations

import re
from typing import Any

from wagle_trainer.attribution import get_score, starting_rate
from wagle_trainer.forgetting.masks import word_weights

NO_MASK = "none"
_BODY = "-body"


def spread(label: str) -> tuple[str, float | str | None]:
    """Score and gamma of a label: "wagle:1e-6" is ("wagle", 1e-6), "snip-body" is ("snip-body", None)."""
    score, _, gamma = label.partition(":")
    if not gamma:
        return score, 1e-6 if score.removesuffix(_BODY) == "wagle" else None
    try:
        return score, float(gamma)
    except ValueError:
        return score, gamma


def check_label(label: str) -> None:
    """Refuse a label that names no score.

    Raises:
        ValueError: unknown; the message lists the scores.
    """
    get_score(spread(label)[0].removesuffix(_BODY))


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
