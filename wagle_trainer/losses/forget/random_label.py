"""Learning random tokens in place of the forget answers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.unlearning_loss import UnlearningLoss, register_loss


@register_loss("random_label")
class RandomLabel(UnlearningLoss):
    """Random labels (Golatkar et al. 2019, arXiv 1911.04933; for language models Yao et al. 2024, arXiv 2402.15159):
    learn a random token at every position of the forget answers.

        L = -mean over tokens of log p(r_t | x, y_<t)    with r_t drawn uniformly from the vocabulary

    The context stays the true answer. The tokens of an example depend on the run's seed and its row in the forget set
    alone: they are the same in every epoch, batch and process, and on resume.

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
        logits = inputs.forget.target_logits()
        counts = zip(inputs.rows.tolist(), inputs.forget.num_tokens().tolist(), strict=True)
        tokens = [self._tokens(row, count, logits.shape[-1]) for row, count in counts]
        return inputs.forget.mean_of(F.cross_entropy(logits, torch.cat(tokens).to(logits.device), reduction="none"))

    def _tokens(self, row: int, count: int, vocabulary: int) -> Tensor:
        # The generator reads the lower 32 bits of a seed alone.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + row * 0x85EBCA6B) % 2**32)
        return torch.randint(vocabulary, (count,), generator=generator)
