"""Preference optimization with refusals."""

from torch import Tensor

from wagle_trainer.losses.unlearning_loss import Signals, UnlearningLoss, register_loss


@register_loss("po")
class PO(UnlearningLoss):
    """Preference optimization as in TOFU (Maini et al. 2024, arXiv 2401.06121, "IDK"; PO in WAGLE): learn to give a
    refusal, or whatever answer is preferred, to the forget questions.

        L = -mean over tokens of log p(preferred answer)

    Data: preference format (`prompt`, `chosen`, `rejected`), or prompt-completion; then the preferred answers come
    from `refusals`, by default the bundled sentences.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="po")
    """

    needs = frozenset({"preferred"})

    def forget_loss(self, signals: Signals) -> Tensor:
        assert signals.preferred is not None
        return -signals.preferred.mean()
