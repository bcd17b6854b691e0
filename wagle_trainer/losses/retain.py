"""Losses on the retain set: what keeps the model as it was."""

from __future__ import annotations

import torch
from torch import Tensor

from wagle_trainer.likelihood import TokenLogProbs

RETAIN_LOSSES = ("nll", "kl")


def check_retain_loss(name: str | None) -> None:
    """Raise ValueError for an unknown retain loss."""
    if name is not None and name not in RETAIN_LOSSES:
        raise ValueError(
            f"Unknown retain_loss {name!r}. Known: {', '.join(RETAIN_LOSSES)}, or None for no retain loss."
        )


def nll(retain: TokenLogProbs) -> Tensor:
    """Negative log-likelihood per label token, (batch,)."""
    return -retain.mean()


def kl_to_reference(retain: TokenLogProbs, reference_logits: Tensor) -> Tensor:
    """KL(p_ref || p) per label token, (batch,): over the whole vocabulary, on the label positions only.

    Args:
        retain: with `logits` kept.
        reference_logits: (label tokens of the batch in row-major order, vocabulary), of the model before unlearning.
    """
    assert retain.logits is not None and retain.kept is not None
    positions = retain.mask[:, retain.kept]
    log_p = retain.logits[positions].float().log_softmax(-1)
    log_reference = reference_logits.float().log_softmax(-1)
    divergence = (log_reference.exp() * (log_reference - log_p)).sum(-1)
    rows = positions.nonzero()[:, 0]
    total = torch.zeros(len(retain.mask), device=divergence.device).index_add(0, rows, divergence)
    return total / retain.num_tokens().clamp(min=1)
