"""Training on the retain set with a penalty on the weights."""

import torch
from torch import Tensor, nn

from wagle_trainer.losses.forget.finetune import Finetune
from wagle_trainer.losses.unlearning_loss import register_loss


@register_loss("l1_sparse")
class L1Sparse(Finetune):
    """l1-sparse unlearning (Jia et al. 2023, arXiv 2304.04934): fine-tuning on the retain set with an L1 penalty
    on the trainable weights.

        L = retain_weight * mean NLL(retain answer) + gamma_t * sum |theta_i|

    gamma_t falls linearly from gamma to zero over the run, the best of the paper's schedules; here by steps, in the
    paper's code by epochs. With a mask the penalty acts on the selected weights, like every other gradient.

    Data: forget and retain set in any TRL format.

    Args:
        gamma: strength at the start. The paper searches it for each model; 5e-4 to 1e-4 are common for image
            classifiers.
        schedule: "linear", or "constant" for gamma_t = gamma.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="l1_sparse", loss_kwargs={"gamma": 1e-4})
    """

    def __init__(self, gamma: float = 1e-4, schedule: str = "linear"):
        if gamma < 0:
            raise ValueError(f"l1_sparse's gamma must not be negative, got {gamma}.")
        if schedule not in ("linear", "constant"):
            raise ValueError(f"Unknown schedule {schedule!r} of l1_sparse. Known: linear, constant.")
        self.gamma, self.schedule = gamma, schedule

    def penalty(self, model: nn.Module, progress: float) -> Tensor:
        gamma = self.gamma * (1 - progress) if self.schedule == "linear" else self.gamma
        norms = [
            parameter.abs().sum(dtype=torch.float32) for parameter in model.parameters() if parameter.requires_grad
        ]
        return gamma * torch.stack(norms).sum()
