"""KL divergence to the reference model on the retain set."""

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.retain_loss import RetainLoss, register_retain_loss


@register_retain_loss("kl")
class KL(RetainLoss):
    """KL divergence from the reference model to the model, over the vocabulary at the target tokens (arXiv 2401.06121).

        L = mean over tokens of sum_v p_ref,t(v) * log(p_ref,t(v) / p_t(v))

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_kwargs={"retain_loss": "kl"})
    """

    needs = frozenset({"retain", "retain_logits", "retain_reference_logits"})

    def retain_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.retain is not None and inputs.retain_reference_logits is not None
        log_p = inputs.retain.target_logits().log_softmax(-1)
        log_reference = inputs.retain_reference_logits.float().log_softmax(-1)
        return inputs.retain.mean_of((log_reference.exp() * (log_reference - log_p)).sum(-1))
