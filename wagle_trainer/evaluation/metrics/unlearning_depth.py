"""How deep inside a model knowledge is gone, by activation patching (arXiv 2605.24614)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, register_metric

KNOWLEDGE_GAP = 0.05  # the paper's threshold, in nats


def unlearning_depth_of(
    unlearned: ArrayLike, retrained: ArrayLike, *, threshold: float = KNOWLEDGE_GAP
) -> float | None:
    """The unlearning depth of one example; None where no layer shows a gap.

    Args:
        unlearned, retrained: see `unlearning_depth`, (layers,).
        threshold: nats by which the retrained model's states must lower the answer, for a layer to count.

    Raises:
        ValueError: the two differ in length, or a number is not finite.
    """
    found, full = np.asarray(unlearned, dtype=np.float64), np.asarray(retrained, dtype=np.float64)
    if found.shape != full.shape or found.ndim != 1 or not found.size:
        raise ValueError(f"Both need a number for each layer, at least one; they have {found.shape} and {full.shape}.")
    if not (np.isfinite(found).all() and np.isfinite(full).all()):
        raise ValueError("A difference of log-probabilities is not finite.")
    counted = full > threshold
    if not counted.any():
        return None
    return float(np.clip(found[counted], 0, full[counted]).sum() / full[counted].sum())


@register_metric(
    "unlearning_depth",
    inputs={
        "predictions": (
            "numbers",
            "for each layer, by how many nats the answer's mean log-probability under the reference model falls with the "
            "unlearned model's hidden states in place of its own",
        ),
        "references": ("numbers", "the same with the hidden states of a model that never saw the forget set"),
    },
    range=SHARE,
    more_known="lower",
    source=citations.UNLEARNING_DEPTH,
)
def unlearning_depth(
    unlearned: Sequence[ArrayLike], retrained: Sequence[ArrayLike], *, threshold: float = KNOWLEDGE_GAP
) -> float:
    """Unlearning depth score: the share of a retrained model's gap in knowledge that an unlearned model has, over layers.

    For an example, mean over the layers l whose gap d_l exceeds the threshold, weighted by d_l, of clip(u_l / d_l, 0, 1):
    d_l and u_l are what patching the retrained and the unlearned model's hidden states into the reference model takes
    from the answer. The mean over the examples that have such a layer. `evaluate_unlearning_depth` measures u and d.

    Args:
        unlearned: u for each example, (layers,) each, in nats.
        retrained: d for each example, (layers,) each, in nats.
        threshold: lowest gap of a layer that counts; 0.05 in the paper.

    Returns:
        A number in [0, 1]: 0 where every layer still holds what is to be forgotten, 1 where none does.

    Raises:
        ValueError: there are no examples, the two differ in length, no example has a layer that counts, or a number is
            not finite.
    """
    if len(unlearned) != len(retrained) or not len(unlearned):
        raise ValueError(
            f"Both need the same examples, at least one; they have {len(unlearned)} and {len(retrained)}."
        )
    found = [unlearning_depth_of(u, d, threshold=threshold) for u, d in zip(unlearned, retrained, strict=True)]
    depths = [depth for depth in found if depth is not None]
    if not depths:
        raise ValueError(
            f"No example has a layer whose gap exceeds {threshold} nats: the retrained model knows as much as the reference "
            "model, so there is nothing to forget."
        )
    return float(np.mean(depths))
