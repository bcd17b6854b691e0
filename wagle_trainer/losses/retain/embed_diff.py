"""Distance to the hidden states of the reference model on the retain set."""

from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.retain_loss import RetainLoss, register_retain_loss


@register_retain_loss("embed_diff")
class EmbedDiff(RetainLoss):
    """Squared distance of a layer's hidden states to those of the reference model: RMU's retain loss (arXiv 2403.03218).

        L = mean over tokens of |h_t - h_ref,t|^2 / d    with h of width d

    The layer is `retain_layer` of `loss_kwargs`, or that of the forget loss.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_kwargs={"retain_loss": "embed_diff", "retain_layer": 7})
    """

    needs = frozenset({"retain", "retain_states", "retain_reference_states"})

    def retain_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.retain is not None and inputs.retain_reference_states is not None
        states = inputs.retain.target_states()
        return inputs.retain.mean_of((states - inputs.retain_reference_states.float()).square().mean(-1))
