"""Loss adjustment with forget data alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss

# Of an f-divergence: the activation g, and the conjugate of f after it (table 1 of the paper).
DIVERGENCES = {
    "total_variation": (lambda v: torch.tanh(v) / 2, lambda v: torch.tanh(v) / 2),
    "kl": (lambda v: v, lambda v: torch.exp(v - 1)),
    "jensen_shannon": (lambda v: math.log(2) - F.softplus(-v), lambda v: v + F.softplus(-v) - math.log(2)),
    "pearson": (lambda v: v, lambda v: v**2 / 4 + v),
}


@register_loss("flat")
class FLAT(UnlearningLoss):
    """Forget-data-only loss adjustment (FLAT; Wang et al. 2024, arXiv 2410.11143): maximise an f-divergence between
    the chosen and the forget answer.

        L = f*(g(P(forget answer))) - g(P(chosen answer))    with P(y) = mean over tokens of p(y_t | x, y_<t)

    P averages probabilities (not their logarithms) over answer tokens; the paper's code also counts prompts and
    padding, as zeros. Needs no retain set, so there is no retain loss by default.

    Data: preference format (`prompt`, `chosen`, `rejected`), or prompt-completion; then the chosen answers come
    from `refusals`, by default the bundled sentences.

    Args:
        divergence: "total_variation" (the default of the paper's code), "kl", "jensen_shannon" or "pearson".

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="flat", loss_kwargs={"divergence": "kl"})
    """

    needs = frozenset({"forget", "chosen"})
    retain_loss = None

    def __init__(self, divergence: str = "total_variation"):
        if divergence not in DIVERGENCES:
            raise ValueError(f"Unknown divergence {divergence!r} of FLAT. Known: {', '.join(DIVERGENCES)}.")
        self.activation, self.conjugate = DIVERGENCES[divergence]

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None and inputs.chosen is not None
        forget, chosen = (
            answer.mean_of(answer.at_targets(answer.log_probs).exp()) for answer in (inputs.forget, inputs.chosen)
        )
        return self.conjugate(forget) - self.activation(chosen)
