"""Preference optimization with refusals."""

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("po")
class PO(UnlearningLoss):
    """Preference optimization as in TOFU (Maini et al. 2024, arXiv 2401.06121, "IDK"; PO in WAGLE): learn to give a
    refusal, or another chosen answer, to the forget questions.

        L = -mean over tokens of log p(chosen answer)

    Data: preference format (`prompt`, `chosen`, `rejected`), or prompt-completion; then the chosen answers come
    from `refusals`, by default the bundled sentences.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="po")
    """

    needs = frozenset({"chosen"})

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.chosen is not None
        return -inputs.chosen.mean()
