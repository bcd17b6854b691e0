"""Primal-dual unlearning."""

from collections.abc import Mapping

import torch
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("pdu")
class PDU(UnlearningLoss):
    """Primal-dual unlearning (PDU; Entesari et al. 2025, arXiv 2506.05314): flatten the logits of the forget answers
    under a constraint on the retain loss.

        L = mean over tokens of (max_v logits_t(v) - mean_v logits_t(v))^2 + lambda * retain loss
        after each step: lambda <- max(0, lambda + dual_step_size * (retain loss - retain_eps))

    so that lambda grows for as long as the retain loss lies above `retain_eps`. It multiplies `retain_weight`, is logged
    as `retain_factor`, and is saved in every checkpoint. OpenUnlearning's code, which is the authors', takes the logits
    at the answer tokens themselves; here they are those that predict the answer tokens. It updates lambda after every
    micro-batch, with the loss of that alone, or once per epoch; here lambda moves once per optimizer step.

    Data: forget and retain set in any TRL format.

    Args:
        retain_eps: the retain loss that is tolerated. The paper suggests somewhat more than that of the reference model;
            there is no default.
        dual_step_size: 1.0 in OpenUnlearning's configuration, 5 in the authors' runs on TOFU.
        dual_warmup_epochs: epochs before lambda moves for the first time; 0 here, 5 in OpenUnlearning's configuration
            and the authors' runs on TOFU.
        initial_dual: lambda at the start; 1 here and in OpenUnlearning's configuration (`alpha`). The authors recommend
            50 to 100, since the squared logit term is large, and take 100 on TOFU, with a `retain_eps` of 0.3.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="pdu", loss_kwargs={"retain_eps": 0.3, "initial_dual": 100.0})
    """

    needs = frozenset({"forget", "forget_logits"})

    def __init__(
        self,
        retain_eps: float,
        dual_step_size: float = 1.0,
        dual_warmup_epochs: float = 0.0,
        initial_dual: float = 1.0,
    ):
        if dual_step_size < 0 or initial_dual < 0:
            raise ValueError(
                f"PDU's dual_step_size and initial_dual must not be negative, got {dual_step_size} and {initial_dual}."
            )
        self.retain_eps, self.dual_step_size = retain_eps, dual_step_size
        self.dual_warmup_epochs, self.dual = dual_warmup_epochs, initial_dual

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None
        logits = inputs.forget.target_logits()
        return inputs.forget.mean_of((logits.amax(-1) - logits.mean(-1)).square())

    def retain_factor(self) -> float:
        return self.dual

    def step_end(self, retain_loss: float, epoch: float) -> None:
        if epoch > self.dual_warmup_epochs:
            self.dual = max(0.0, self.dual + self.dual_step_size * (retain_loss - self.retain_eps))

    def state(self) -> dict[str, Tensor]:
        return {"dual": torch.tensor(self.dual, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.dual = state["dual"].item()
