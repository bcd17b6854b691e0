"""Direct preference optimization."""

import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.unlearning_loss import Signals, UnlearningLoss, register_loss


@register_loss("dpo")
class DPO(UnlearningLoss):
    """Direct preference optimization (DPO; Rafailov et al. 2023, arXiv 2305.18290, eq. 7): prefer a refusal, or
    whatever answer is preferred, to the answer that is to be forgotten.

        L = -log sigmoid(beta * (log p(chosen) / p_ref(chosen) - log p(rejected) / p_ref(rejected)))

    with the log-probabilities of whole answers, summed over tokens. Unlearning codes multiply it by 1 / beta or
    2 / beta, so that its slope at the start does not depend on beta: see `altpo`.

    Data: preference format (`prompt`, `chosen`, `rejected`), or prompt-completion; then the preferred answers come
    from `refusals`, by default the bundled sentences.

    Args:
        beta: inverse temperature; 0.1 in the paper.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="dpo", loss_kwargs={"beta": 0.1})
    """

    needs = frozenset({"forget", "preferred", "reference"})

    def __init__(self, beta: float = 0.1):
        if not beta > 0:
            raise ValueError(f"{type(self).__name__}'s beta must be positive, got {beta}.")
        self.beta = beta

    def forget_loss(self, signals: Signals) -> Tensor:
        assert signals.forget is not None and signals.forget_reference is not None
        assert signals.preferred is not None and signals.preferred_reference is not None
        preferred = signals.preferred.sum() - signals.preferred_reference
        forget = signals.forget.sum() - signals.forget_reference
        return -F.logsigmoid(self.beta * (preferred - forget))
