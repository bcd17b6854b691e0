"""Jensen-Shannon divergence to the reference model on the retain set."""

import math

import torch
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.retain_loss import RetainLoss, register_retain_loss


@register_retain_loss("js")
class JS(RetainLoss):
    """Jensen-Shannon divergence to the reference model, at most log 2 (arXiv 2509.02820).

        L = mean over tokens of (KL(p_t || m_t) + KL(p_ref,t || m_t)) / 2    with m_t = (p_t + p_ref,t) / 2

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_kwargs={"retain_loss": "js"})
    """

    needs = frozenset({"retain", "retain_logits", "retain_reference_logits"})

    def retain_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.retain is not None and inputs.retain_reference_logits is not None
        log_p = inputs.retain.target_logits().log_softmax(-1)
        log_reference = inputs.retain_reference_logits.float().log_softmax(-1)
        log_middle = log_p.logaddexp(log_reference) - math.log(2)
        divergences = [(side.exp() * (side - log_middle)).sum(-1) for side in (log_p, log_reference)]
        return inputs.retain.mean_of(torch.stack(divergences).mean(0))
