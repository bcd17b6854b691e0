"""Representation misdirection for unlearning."""

import torch
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("rmu")
class RMU(UnlearningLoss):
    """Representation misdirection (RMU; Li et al. 2024, arXiv 2403.03218): steer the hidden states of the forget
    answers towards a random direction, and hold those of the retain set.

        L = forget_weight * mean over tokens of |h_t - c * u|^2 / d + retain_weight * mean over tokens of |h_t - h_ref,t|^2 / d

    with the output h of one decoder layer, of width d, at the target tokens,
    and u a unit vector with entries drawn uniformly from [0, 1): fixed for the run, and by its seed. The paper writes
    the squared norm; its code, whose settings are quoted here, divides by d. With `adaptive` the target's length
    follows the reference model, token by token: c = scale * |h_ref,t| (Adaptive RMU; Huu-Tien et al. 2024,
    arXiv 2408.06223; their code takes the mean over the first batch).

    The paper trains the MLP output of the layer and of the two before it only: `attribution_include=["layers\\\\.[567]\\\\.mlp\\\\.down_proj"]`.

    Data: forget and retain set in any TRL format.

    Args:
        layer: index of the decoder layer, from 0; 7 in the paper.
        coefficient: c; 20 by default in the code, 6.5 in the paper for Zephyr-7B, together with a retain weight of 1200.
        adaptive: see above.
        scale: of the adaptive target; 5 in that paper's code.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="rmu", loss_kwargs={"layer": 7}, retain_weight=1200.0)
    """

    needs = frozenset({"forget", "forget_states"})
    retain_loss = "embed_diff"

    def __init__(self, layer: int = 7, coefficient: float = 20.0, adaptive: bool = False, scale: float = 5.0):
        self.layer, self.coefficient, self.adaptive, self.scale = layer, coefficient, adaptive, scale
        if adaptive:
            self.needs = self.needs | {"forget_reference_states"}
        self.seed = 0
        self._vector: Tensor | None = None  # on the device: sending it there in every step would wait for the device

    def setup(self, tokenizer: object, seed: int) -> None:
        self.seed, self._vector = seed, None

    def control_vector(self, size: int) -> Tensor:
        """The unit vector u."""
        vector = torch.rand(size, generator=torch.Generator().manual_seed(self.seed % 2**32))
        return vector / vector.norm()

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None
        states = inputs.forget.target_states()
        if self._vector is None or self._vector.device != states.device:
            self._vector = self.control_vector(states.shape[-1]).to(states.device)
        target = self._vector
        if self.adaptive:
            assert inputs.forget_reference_states is not None
            target = self.scale * inputs.forget_reference_states.float().norm(dim=-1, keepdim=True) * target
        else:
            target = self.coefficient * target
        return inputs.forget.mean_of((states - target).square().mean(-1))
