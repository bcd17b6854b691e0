"""Alternate preference optimization."""

from torch import Tensor

from wagle_trainer.losses.forget.dpo import DPO
from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import register_loss


@register_loss("altpo")
class AltPO(DPO):
    """Alternate preference optimization (AltPO; Mekala et al. 2024, arXiv 2409.13474): DPO towards plausible other
    answers to the same questions.

        L = -2 / beta * log sigmoid(beta * (log p(alternate) / p_ref(alternate) - log p(forget) / p_ref(forget)))

    with the log-probabilities of whole answers, summed over tokens.

    Data: preference format (`prompt`, `chosen`, `rejected`); `chosen` is an alternate answer in the style of the true
    one, which the paper has the model itself write. Refusals are another method (`dpo`) and do not replace it.

    Args:
        beta: inverse temperature; 0.1 as for DPO.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="altpo", loss_kwargs={"beta": 0.1})
    """

    accepts_refusals = False

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        return 2 / self.beta * super().forget_loss(inputs)
