"""Gradient difference."""

from wagle_trainer.losses.forget.grad_ascent import GradAscent
from wagle_trainer.losses.unlearning_loss import register_loss


@register_loss("grad_diff")
class GradDiff(GradAscent):
    """Gradient difference (GradDiff; Liu et al. 2022, arXiv 2203.12817): gradient ascent on the forget set, descent on
    the retain set.

        L = forget_weight * mean log p(forget answer) - retain_weight * mean log p(retain answer)

    Data: forget and retain set in any TRL format.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="grad_diff", retain_weight=2.0)
    """

    retain_loss = "nll"
