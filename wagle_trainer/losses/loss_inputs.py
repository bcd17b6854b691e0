"""What a loss reads of one batch: `LossInputs`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wagle_trainer.models.log_probs import TokenLogProbs


@dataclass
class LossInputs:
    """Model outputs and reference outputs of one batch of forget-retain pairs; None for what no loss needs.

    The prefix of a field names its split: "forget" holds the answers to forget, "chosen" the answers to give instead,
    "retain" the answers to keep.

    Attributes:
        forget, chosen, retain: log-probabilities of the answers, with logits or hidden states if they are needed.
        forget_reference, chosen_reference, retain_reference: (batch,) log-probability of each answer, summed over its
            tokens, under the reference model.
        forget_reference_tokens, chosen_reference_tokens, retain_reference_tokens: the same per token, aligned with
            `log_probs` of the split; zero where there is no target token.
        forget_reference_logits, chosen_reference_logits, retain_reference_logits: (target tokens, vocabulary), logits of
            the reference model in the order of `target_logits()`.
        forget_reference_states, chosen_reference_states, retain_reference_states: (target tokens, hidden size), hidden
            states of the reference model in the order of `target_states()`.
        rows: (batch,) rows of the forget set.
    """

    forget: TokenLogProbs | None = None
    chosen: TokenLogProbs | None = None
    retain: TokenLogProbs | None = None
    forget_reference: Tensor | None = None
    chosen_reference: Tensor | None = None
    retain_reference: Tensor | None = None
    forget_reference_tokens: Tensor | None = None
    chosen_reference_tokens: Tensor | None = None
    retain_reference_tokens: Tensor | None = None
    forget_reference_logits: Tensor | None = None
    chosen_reference_logits: Tensor | None = None
    retain_reference_logits: Tensor | None = None
    forget_reference_states: Tensor | None = None
    chosen_reference_states: Tensor | None = None
    retain_reference_states: Tensor | None = None
    rows: Tensor | None = None
