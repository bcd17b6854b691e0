"""Losses on the retain set: what keeps the model as it was."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wagle_trainer.models.log_probs import TokenLogProbs

RETAIN_LOSSES = ("nll", "kl", "js", "embed_diff")


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
    log_p = retain.label_logits().log_softmax(-1)
    log_reference = reference_logits.float().log_softmax(-1)
    return retain.mean_of((log_reference.exp() * (log_reference - log_p)).sum(-1))


def js_to_reference(retain: TokenLogProbs, reference_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence to the model before, per label token, (batch,): at most log 2 (arXiv 2509.02820).

    Args:
        retain, reference_logits: as for `kl_to_reference`.
    """
    log_p = retain.label_logits().log_softmax(-1)
    log_reference = reference_logits.float().log_softmax(-1)
    log_middle = log_p.logaddexp(log_reference) - math.log(2)
    divergences = [(side.exp() * (side - log_middle)).sum(-1) for side in (log_p, log_reference)]
    return retain.mean_of(torch.stack(divergences).mean(0))


def embedding_difference(retain: TokenLogProbs, reference_states: Tensor) -> Tensor:
    """Squared distance of a layer's hidden states to those of the model before, per label token and dimension, (batch,):
    the retain loss of RMU (arXiv 2403.03218).

    Args:
        retain: with `states` kept.
        reference_states: (label tokens of the batch in row-major order, hidden size), of the model before unlearning.
    """
    return retain.mean_of((retain.label_states() - reference_states.float()).square().mean(-1))
