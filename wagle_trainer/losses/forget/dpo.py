"""Direct preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("dpo")
class DPO(UnlearningLoss):
    """Direct preference optimization (DPO; Rafailov et al. 2023, arXiv 2305.18290, eq. 7): prefer a refusal, or
    another chosen answer, to the answer to forget.

        L = -log sigmoid(beta * (log p(chosen) / p_ref(chosen) - log p(rejected) / p_ref(rejected)))

    with the log-probabilities of full answers, summed over tokens. OpenUnlearning multiplies it by 2 / beta, so that its
    slope at the start does not depend on beta: that is `altpo`, or `dpo` with forget_weight = 2 / beta.

    Data: preference format (`prompt`, `chosen`, `rejected`), or prompt-completion; then the chosen answers come
    from `refusals`, by default the bundled sentences.

    Args:
        beta: inverse temperature; 0.1 in the paper and in OpenUnlearning's configuration.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="dpo", loss_kwargs={"beta": 0.1})
    """

    needs = frozenset({"forget", "chosen", "reference"})

    def __init__(self, beta: float = 0.1):
        if not beta > 0:
            raise ValueError(f"{type(self).__name__}'s beta must be positive, got {beta}.")
        self.beta = beta

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None and inputs.forget_reference is not None
        assert inputs.chosen is not None and inputs.chosen_reference is not None
        chosen = inputs.chosen.sum() - inputs.chosen_reference
        forget = inputs.forget.sum() - inputs.forget_reference
        return -F.logsigmoid(self.beta * (chosen - forget))
