"""Gradient ascent weighted by saturation and importance."""

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("satimp")
class SatImp(UnlearningLoss):
    """Saturation- and importance-weighted gradient ascent (SatImp; Yang et al. 2025, arXiv 2505.11953).

        L = mean over tokens of w_t * log p_t    with p_t = p(y_t | x, y_<t), w_t = p_t^beta1 * (1 - p_t)^beta2, detached

    The first factor spares tokens that are forgotten already, the second those that the model is sure of anyway. The
    authors' code (tmlr-group/SatImp at 7115261) has this loss without a retain loss as `satimp`, and with one weighed by
    0.1 as `satimp_gd`; it averages over the tokens of a batch.

    Data: forget and retain set in any TRL format.

    Args:
        beta1, beta2: 5 and 1 in the paper, with a retain loss weighed by 0.1 (`retain_weight`); the authors' README
            recommends 5 and 0.1. OpenUnlearning's configuration has 5 and 1, and weighs the forget loss by 0.1 instead.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="satimp", retain_weight=0.1)
    """

    def __init__(self, beta1: float = 5.0, beta2: float = 1.0):
        if beta1 < 0 or beta2 < 0:
            raise ValueError(f"SatImp's beta1 and beta2 must not be negative, got {beta1} and {beta2}.")
        self.beta1, self.beta2 = beta1, beta2

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None
        log_probs = inputs.forget.at_targets(inputs.forget.log_probs)
        p = log_probs.detach().exp().clamp(max=1)  # rounding may leave it just above, and a power of that is NaN
        return inputs.forget.mean_of(p**self.beta1 * (1 - p) ** self.beta2 * log_probs)
