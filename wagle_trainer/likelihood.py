"""Log-likelihood of labelled tokens: the one forward pass that attribution, the losses and the evaluation share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE_INDEX = -100


def label_mask(labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions whose *next* token carries a label. `labels` (batch, length) -> bool (batch, length - 1).

    No token precedes the first one of an example, so its label does not count, whichever side the padding is on.
    """
    mask = labels[:, 1:] != IGNORE_INDEX
    return mask if attention_mask is None else mask & attention_mask[:, :-1].bool()


@dataclass
class TokenLogProbs:
    """Per-token log-probabilities of a batch, aligned with `labels[:, 1:]`.

    Attributes:
        log_probs: float32 (batch, length - 1), in nats; exactly zero where `mask` is False.
        mask: bool (batch, length - 1), True on label tokens.
        is_top1: bool (batch, length - 1) or None; True where the label is the model's most likely token.
        logits: (batch, kept, vocabulary) or None; the raw logits of the positions in `kept`.
        kept: int64 (kept,), the positions along the length that some example of the batch has a label after.
    """

    log_probs: Tensor
    mask: Tensor
    is_top1: Tensor | None = None
    logits: Tensor | None = None
    kept: Tensor | None = None

    def sum(self) -> Tensor:
        """Log-probability of each whole answer, (batch,)."""
        return self.log_probs.sum(-1)

    def mean(self) -> Tensor:
        """Mean log-probability per label token of each example, (batch,); zero for an example without labels."""
        return self.sum() / self.num_tokens().clamp(min=1)

    def num_tokens(self) -> Tensor:
        """Label tokens of each example, (batch,)."""
        return self.mask.sum(-1)


def unwrap(model: nn.Module) -> nn.Module:
    """The model whose `forward` signature counts: out of DDP and PEFT wrappers."""
    while True:
        if isinstance(getattr(model, "module", None), nn.Module):
            model = model.module  # type: ignore[assignment]
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def forward_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of `batch` that the forward pass takes.

    Positions are counted from the first real token, so that models with absolute positions give the same answer for
    left-padded and right-padded batches. Right-padded batches already have them: they get no `position_ids`.
    """
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if batch.get(key) is not None}
    attention_mask = inputs.get("attention_mask")
    if (
        attention_mask is not None
        and "position_ids" not in inputs
        and not bool(attention_mask[:, 0].all())
        and "position_ids" in inspect.signature(unwrap(model).forward).parameters
    ):
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return inputs


def token_log_probs(
    model: nn.Module, batch: Mapping[str, Tensor], *, top1: bool = False, keep_logits: bool = False
) -> TokenLogProbs:
    """Log-probabilities of the label tokens of `batch` under `model`, with gradients if they are enabled.

    The language-model head runs only on positions that some example has a label after, where the model offers
    `logits_to_keep`: the prompts that all examples share and the padding cost nothing there.

    Args:
        model: a causal language model, possibly wrapped by PEFT or DDP.
        batch: `input_ids`, `labels` (-100 = no loss) and, when padded, `attention_mask`; each (batch, length), on the
            model's device.
        top1: also tell whether each label is the most likely token.
        keep_logits: also return the logits of the kept positions.
    """
    labels = batch["labels"]
    mask = label_mask(labels, batch.get("attention_mask"))
    kept = mask.any(0).nonzero().squeeze(-1)
    if kept.numel() == 0:  # nothing to score, but the caller may still need a differentiable zero
        kept = torch.zeros(1, dtype=torch.long, device=labels.device)
    inputs = forward_inputs(model, batch)
    parameters = inspect.signature(unwrap(model).forward).parameters
    if "use_cache" in parameters:
        inputs["use_cache"] = False  # type: ignore[assignment]
    if "logits_to_keep" in parameters:
        logits = model(**inputs, logits_to_keep=kept).logits
    else:
        logits = model(**inputs).logits[:, kept]
    targets = labels[:, 1:].masked_fill(~mask, IGNORE_INDEX)[:, kept]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    log_probs = torch.zeros(mask.shape, dtype=torch.float32, device=labels.device)
    log_probs = log_probs.index_copy(1, kept, -losses.view(targets.shape))
    is_top1 = None
    if top1:
        is_top1 = torch.zeros_like(mask).index_copy(1, kept, logits.argmax(-1) == targets)
    return TokenLogProbs(log_probs, mask, is_top1, logits if keep_logits else None, kept if keep_logits else None)
