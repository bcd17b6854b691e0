"""Unlearning with the Jensen-Shannon divergence."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("jensun")
class JensUn(UnlearningLoss):
    """JensUn (Singh et al. 2025, arXiv 2509.02820): Jensen-Shannon divergence between the model and a fixed refusal on
    the forget answers, and between the model and the reference model on the retain set.

        L = forget_weight * mean over tokens of JS(p_t, onehot(r_t)) + retain_weight * mean over tokens of JS(p_t, p_ref,t)

    r_t repeats the tokens of the refusal over the answer. JS(p, onehot(r)) depends on q = p(r) alone and equals
    log 2 + (q * log q - (1 + q) * log(1 + q)) / 2: between 0 and log 2, with a gradient that fades at both ends. The
    authors' code (nmndeep/JensUn-Unlearning at 9d0cfd5) has the same targets, clamps the forget term's probabilities at
    1e-9, and averages over the tokens of a batch, where this loss averages over each answer first. Its first release
    (925e221) differs: there every token of the refusal counts as 1 at every position, prompts and padding included.

    Data: forget and retain set in any TRL format.

    Args:
        target: the refusal, or its token ids; "No idea" in the paper and in the authors' code, where both weights are 1.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="jensun", loss_kwargs={"target": "No idea"})
    """

    needs = frozenset({"forget", "forget_logits"})
    retain_loss = "js"

    def __init__(self, target: str | Sequence[int] = "No idea"):
        if not target:
            raise ValueError("JensUn's target must have at least one token.")
        self.target = target

    def setup(self, tokenizer: Any, seed: int) -> None:
        if isinstance(self.target, str):
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a multimodal model's processor
            self.target = list(tokenizer(self.target, add_special_tokens=False)["input_ids"])

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None and not isinstance(self.target, str)
        forget = inputs.forget
        log_p = forget.target_logits().log_softmax(-1)
        target = torch.tensor(self.target).to(log_p.device, non_blocking=True)
        places = forget.at_targets(forget.mask.cumsum(-1) - 1) % len(target)
        log_q = log_p.gather(1, target[places][:, None])[:, 0]
        q = log_q.exp()
        return forget.mean_of(math.log(2) + (q * log_q - (1 + q) * q.log1p()) / 2)
