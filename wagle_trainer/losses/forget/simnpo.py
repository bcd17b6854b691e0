"""Simple negative preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("simnpo")
class SimNPO(UnlearningLoss):
    """Simple negative preference optimization (SimNPO; Fan et al. 2024, arXiv 2410.07163): NPO without reference, on
    log-probabilities normalised by length.

        L = -2 / beta * log sigmoid(-beta / |y| * log p(y | x) - delta)

    |y| counts the target tokens. The margin stands outside the factor beta, as in the paper (there: gamma); codes that
    compute beta * (NLL / |y| - delta) call delta what is delta / beta here. At delta = 0, their default and that of the
    paper, there is no difference.

    Data: forget and retain set in any TRL format.

    Args:
        beta: inverse temperature. The paper's code takes 4.5 with a forget weight of 0.125 on TOFU's forget10, 2.5 with
            0.1375 on forget05; OpenUnlearning's configuration has the former.
        delta: margin.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="simnpo", loss_kwargs={"beta": 4.5}, forget_weight=0.125)
    """

    def __init__(self, beta: float = 4.5, delta: float = 0.0):
        if not beta > 0:
            raise ValueError(f"SimNPO's beta must be positive, got {beta}.")
        self.beta, self.delta = beta, delta

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None
        return -2 / self.beta * F.logsigmoid(-self.beta * inputs.forget.mean() - self.delta)
