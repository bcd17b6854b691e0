"""Cross-entropy unlearning."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("ceu")
class CEU(UnlearningLoss):
    """Cross-entropy unlearning (CE-U; Yang 2025, arXiv 2503.01224): learn what the model says itself once the true
    token is struck out.

        L = -mean over tokens of sum_v q_t(v) * log p_t(v)    with q_t = softmax(logits_t, true token at -infinity), detached

    The gradient is bounded and vanishes as the true token becomes unlikely. No retain loss by default.

    Data: forget and retain set in any TRL format.

    Args:
        ignore_first_tokens: answer tokens at the start that are left as they are; 1 in the paper, since the first
            token says little and opens every answer. Answers with no more tokens than that train nothing: they are
            counted in a warning, and a forget set of such answers alone is refused.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="ceu")
    """

    needs = frozenset({"forget", "forget_logits"})
    retain_loss = None

    def __init__(self, ignore_first_tokens: int = 1):
        if ignore_first_tokens < 0:
            raise ValueError(f"CE-U's ignore_first_tokens must not be negative, got {ignore_first_tokens}.")
        self.ignore_first_tokens = ignore_first_tokens

    def check_answers(self, lengths: Sequence[int]) -> None:
        short = sum(length <= self.ignore_first_tokens for length in lengths)
        if not short:
            return
        text = (
            f"{short} of {len(lengths)} forget answers have no more than {self.ignore_first_tokens} target tokens, which CE-U "
            'ignores: they train nothing. Set loss_kwargs={"ignore_first_tokens": 0}.'
        )
        if short == len(lengths):
            raise ValueError(text)
        warnings.warn(text, stacklevel=2)

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None
        mask = inputs.forget.mask
        forget = replace(inputs.forget, mask=mask & (mask.cumsum(-1) > self.ignore_first_tokens))
        logits = forget.target_logits()
        struck_out = logits.detach().scatter(1, forget.target_tokens()[:, None], float("-inf"))
        return forget.mean_of(-(struck_out.softmax(-1) * logits.log_softmax(-1)).sum(-1))
