"""Gradient ascent held by the KL divergence to the reference model."""

from wagle_trainer.losses.forget.grad_ascent import GradAscent
from wagle_trainer.losses.unlearning_loss import register_loss


@register_loss("kl_min")
class KLMin(GradAscent):
    """KL minimization as in TOFU (Maini et al. 2024, arXiv 2401.06121): gradient ascent on the forget set, KL divergence
    to the reference model on the retain set.

        L = forget_weight * mean log p(forget answer) + retain_weight * mean KL(p_ref || p)

    The divergence is over the full vocabulary, at the positions that predict answer tokens of the retain set.
    OpenUnlearning's code (GradDiff with `retain_loss_type: KL`) averages it over prompts and padding, too. Both weights
    are 1 by default, here and there.

    Data: forget and retain set in any TRL format.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="kl_min")
    """

    retain_loss = "kl"
