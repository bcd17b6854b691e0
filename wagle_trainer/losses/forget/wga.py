"""Weighted gradient ascent."""

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("wga")
class WGA(UnlearningLoss):
    """Weighted gradient ascent (WGA; Wang et al. 2025, arXiv 2502.19301): gradient ascent that leaves alone what is
    already unlikely.

        L = mean over tokens of w_t * log p(y_t | x, y_<t)    with w_t = p(y_t | x, y_<t)^beta, detached

    The weights are constants to the gradient: they cancel the factor 1 / p of gradient ascent for beta = 1.

    Data: forget and retain set in any TRL format.

    Args:
        beta: 1.0 in OpenUnlearning, which quotes the paper; 5 by default in the authors' code. 0 is gradient ascent.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="wga", loss_kwargs={"beta": 1.0})
    """

    def __init__(self, beta: float = 1.0):
        if beta < 0:
            raise ValueError(f"WGA's beta must not be negative, got {beta}.")
        self.beta = beta

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None
        log_probs = inputs.forget.at_targets(inputs.forget.log_probs)
        return inputs.forget.mean_of((self.beta * log_probs.detach()).exp() * log_probs)
