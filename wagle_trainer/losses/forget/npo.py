"""Negative preference optimization."""

import math

import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("npo")
class NPO(UnlearningLoss):
    """Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868, eq. 3).

        L = -2 / beta * log sigmoid(-beta * log(p(y | x) / (target * p_ref(y | x))))

    with the log-probabilities of whole answers (summed over tokens, as in the paper; several codebases take the mean).
    `p_ref` is the reference model; its values are computed once, so no second model is in memory. At the
    start of training the gradient is that of the summed log-likelihood: gradient ascent, which fades as p falls. The paper
    has target = 1; with a smaller one the gradient fades later: it is as large at target * p_ref as the paper's at p_ref.

    Data: forget and retain set in any TRL format.

    Args:
        beta: inverse temperature; 0.1 in the paper. For beta -> 0 NPO becomes gradient ascent.
        length_normalized: divide the log-ratio by the number of answer tokens.
        target: share of the reference probability (of its geometric mean over tokens, if `length_normalized`) to which an
            answer is pushed, in (0, 1].

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="npo", loss_kwargs={"beta": 0.1})
    """

    needs = frozenset({"forget", "reference"})

    def __init__(self, beta: float = 0.1, length_normalized: bool = False, target: float = 1.0):
        if not beta > 0:
            raise ValueError(f"NPO's beta must be positive, got {beta}.")
        if not 0 < target <= 1:
            raise ValueError(f"NPO's target must lie in (0, 1], got {target}.")
        self.beta = beta
        self.length_normalized = length_normalized
        self.target = target

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None and inputs.forget_reference is not None
        log_ratio = inputs.forget.sum() - inputs.forget_reference
        if self.length_normalized:
            log_ratio = log_ratio / inputs.forget.num_tokens().clamp(min=1)
        return -2 / self.beta * F.logsigmoid(-self.beta * (log_ratio - math.log(self.target)))
