"""Token-wise negative preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("tnpo")
class TNPO(UnlearningLoss):
    """Token-wise negative preference optimization (TNPO; Wang et al. 2025, arXiv 2502.19301): NPO with a weight for each
    token in place of each answer.

        L = -2 / beta * mean over tokens of log sigmoid(-beta * log(p_t / p_ref,t))    with p_t = p(y_t | x, y_<t)

    Its gradient is that of gradient ascent with the paper's weights w_t = 2 p_t^beta / (p_t^beta + p_ref,t^beta). The
    authors' code (tmlr-group/G-effect at ef368ee) uses these weights, detached, with 1e-5 added to the denominator, and
    averages over the tokens of a batch. It has no retain loss as `tnpo`, and KL over all positions as `tnpo_kl`.

    Data: forget and retain set in any TRL format.

    Args:
        beta: inverse temperature. 1 here, where w_t = 2 p_t / (p_t + p_ref,t); 4 by default in the authors' code. For
            beta -> 0 TNPO becomes gradient ascent.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="tnpo", loss_kwargs={"beta": 1.0})
    """

    needs = frozenset({"forget", "reference"})

    def __init__(self, beta: float = 1.0):
        if not beta > 0:
            raise ValueError(f"TNPO's beta must be positive, got {beta}.")
        self.beta = beta

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None and inputs.forget_reference_tokens is not None
        log_ratios = inputs.forget.at_targets(inputs.forget.log_probs - inputs.forget_reference_tokens)
        return inputs.forget.mean_of(-2 / self.beta * F.logsigmoid(-self.beta * log_ratios))
