"""Unlearning by self-distillation on adjusted logits."""

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("undial")
class UNDIAL(UnlearningLoss):
    """Self-distillation on adjusted logits (UNDIAL; Dong et al. 2024, arXiv 2402.10052): learn what the
    reference model said, with the logit of the true token lowered.

        L = -mean over tokens of sum_v q_t(v) * log p_t(v)    with q_t = softmax(logits_ref,t - beta * onehot(y_t))

    at the positions that predict answer tokens, and there only. OpenUnlearning's code also averages over prompts and
    padding, where it lowers the logit of an unrelated token; its retain weight is 0, as there is no retain loss by
    default here.

    Data: forget and retain set in any TRL format.

    Args:
        beta: how much the true token's logit is lowered; 10 here and in OpenUnlearning's configuration.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="undial", loss_kwargs={"beta": 10.0})
    """

    needs = frozenset({"forget", "forget_logits", "forget_reference_logits"})
    retain_loss = None

    def __init__(self, beta: float = 10.0):
        if not beta > 0:
            raise ValueError(f"UNDIAL's beta must be positive, got {beta}.")
        self.beta = beta

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None and inputs.forget_reference_logits is not None
        reference = inputs.forget_reference_logits.float()
        tokens = inputs.forget.target_tokens()[:, None]
        lowered = reference.scatter_add(1, tokens, reference.new_full(tokens.shape, -self.beta))
        log_p = inputs.forget.target_logits().log_softmax(-1)
        return inputs.forget.mean_of(-(lowered.softmax(-1) * log_p).sum(-1))
