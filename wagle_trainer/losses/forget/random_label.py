"""Learning random tokens in place of the forget answers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss

# Multipliers and shifts of SplitMix64's finalizer (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
# generators", figure 14), and its increment, as int64.
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64


@register_loss("random_label")
class RandomLabel(UnlearningLoss):
    """Random labels (Golatkar et al. 2019, arXiv 1911.04933; for language models Yao et al. 2024, arXiv 2402.15159):
    learn a random token at every position of the forget answers.

        L = -mean over tokens of log p(r_t | x, y_<t)    with r_t drawn uniformly from the vocabulary

    The context stays the true answer. Tokens are drawn on the device, by `random_tokens`: r_t is a hash of the run's seed,
    the example's row in the forget set and the place of the token in the answer. It is the same in every epoch, batch and
    process, on every device, and on resume.

    Data: forget and retain set in any TRL format.

    Example:
        >>> from wagle_trainer import WagleConfig
        >>> args = WagleConfig(output_dir="out", loss_type="random_label")
    """

    needs = frozenset({"forget", "forget_logits"})
    seed = 0

    def setup(self, tokenizer: object, seed: int) -> None:
        self.seed = seed

    def forget_loss(self, inputs: LossInputs) -> Tensor:
        assert inputs.forget is not None and inputs.rows is not None
        forget = inputs.forget
        logits = forget.target_logits()
        rows = forget.at_targets(inputs.rows[:, None].expand_as(forget.mask))
        places = forget.at_targets(forget.mask.cumsum(-1) - 1)
        tokens = random_tokens(self.seed, rows, places, logits.shape[-1])
        return forget.mean_of(F.cross_entropy(logits, tokens, reduction="none"))


def random_tokens(seed: int, rows: Tensor, places: Tensor, vocabulary: int) -> Tensor:
    """Return one token for each (seed, row, place), uniform over the vocabulary.

    Integers alone decide: the device, the other entries and their order do not matter, and no generator is read. A token
    is the hash modulo the vocabulary, so that its probability is off by vocabulary / 2**63 at most.

    Args:
        rows, places: int64, of one shape.
    """
    row_keys = _mixed(rows * _INCREMENT + _mixed(torch.tensor(seed)))
    return (_mixed(row_keys + places * _INCREMENT) & (2**63 - 1)) % vocabulary


def _mixed(values: Tensor) -> Tensor:
    """SplitMix64's finalizer, a permutation of the int64 numbers in which every bit depends on all others."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """int64 `values` moved right by some bits, with zeros from the left: `>>` alone repeats the sign."""
    return (values >> bits) & (2 ** (64 - bits) - 1)
