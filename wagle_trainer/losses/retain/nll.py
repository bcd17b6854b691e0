"""Negative log-likelihood on the retain set."""

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.retain_loss import RetainLoss, register_retain_loss


@register_retain_loss("nll")
class NLL(RetainLoss):
    """Negative log-likelihood of the retain answers: continued training, as in GradDiff (arXiv 2203.12817).

        L = -mean over tokens of log p(y_t | x, y_<t)

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_kwargs={"retain_loss": "nll"})
    """

    def retain_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.retain is not None
        return -inputs.retain.mean()
