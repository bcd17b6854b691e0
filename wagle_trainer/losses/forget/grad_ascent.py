"""Gradient ascent on the forget set."""

from typing import ClassVar

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("grad_ascent")
class GradAscent(UnlearningLoss):
    """Gradient ascent (GA; Jang et al. 2023, arXiv 2210.01504): minus the negative log-likelihood of the forget answers.

        L = mean over tokens of log p(y_t | x, y_<t)

    Unbounded below: it destroys the model if it runs long. No retain loss by default.

    Data: forget and retain set in any TRL format.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="grad_ascent")
    """

    retain_loss: ClassVar[str | None] = None

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None
        return inputs.forget.mean()
