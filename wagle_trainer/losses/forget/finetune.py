"""Training on the retain set alone."""

from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("finetune")
class Finetune(UnlearningLoss):
    """Fine-tuning on the retain set alone (FT; Warnecke et al. 2021, arXiv 2108.11577): forgets by letting the forget
    set fade.

        L = retain_weight * mean NLL(retain answer)

    One epoch is still as many examples as the forget set has. Masks are scored with the forget set as for the others.

    Data: forget and retain set in any TRL format.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="finetune")
    """

    needs = frozenset()
