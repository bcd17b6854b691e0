"""Which tokens a data set makes a model write, for scores that rank the rows of its output head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wagle_trainer.models.architecture import output_head, text_config, unwrap
from wagle_trainer.models.log_probs import label_mask

_LONGEST_TAIL = 2  # tokens of a chat template behind an answer's end


class TargetTokens:
    """Counts of the target tokens of a set.

    The tokens that begin, end or pad a text do not count: every answer ends with one. Nor do one or two tokens behind the last
    end, which chat templates write after every answer.

    Args:
        model: the causal language model.
        parameters: name -> parameter to score.
        device: of the counts, where processes add theirs up.

    Attributes:
        key: name of the parameter that has a row for each token: the head's weight, which may be that of the embeddings.
        counts: float32 (vocabulary,).

    Raises:
        ValueError: that parameter is not among `parameters`; or (`look_at`) a token that the model does not have.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], device: torch.device):
        self.key = _head_name(unwrap(model), parameters)
        # The weight itself may be sharded, and a head may have more rows than there are tokens.
        vocabulary = getattr(text_config(model), "vocab_size", None) or 0
        self.counts = torch.zeros(max(vocabulary, len(parameters[self.key])), device=device)
        self._ends = _ids_of(unwrap(model), ("eos_token_id",))
        self._no_words = self._ends | _ids_of(unwrap(model), ("bos_token_id", "pad_token_id"))

    def look_at(self, batch: Mapping[str, Tensor]) -> None:
        """Count the target tokens of a batch."""
        labels = batch["labels"][:, 1:]
        kept = label_mask(batch["labels"], batch.get("attention_mask"))
        ends = kept & torch.isin(labels, torch.tensor(sorted(self._ends), dtype=labels.dtype, device=labels.device))
        behind = kept & (ends.flip(1).cumsum(1).flip(1) == 0)  # the last end
        template = ends.any(1) & (behind.sum(1) <= _LONGEST_TAIL)
        targets = labels[kept & ~(behind & template[:, None])]
        found = torch.bincount(targets, minlength=len(self.counts))
        if len(found) > len(self.counts):
            raise ValueError(
                f"The set has the target token {len(found) - 1}, and the model has {len(self.counts)} tokens: is it another "
                "tokenizer's? Or resize the model's embeddings (`model.resize_token_embeddings`)."
            )
        self.counts += found

    def result(self, all_processes: bool) -> dict[str, Tensor]:
        """The counts under the name of their parameter.

        Args:
            all_processes: add up those of all processes.
        """
        if all_processes:
            dist.all_reduce(self.counts)
        self.counts[[token for token in self._no_words if 0 <= token < len(self.counts)]] = 0
        return {self.key: self.counts}


def counts_by_row(counts: Tensor, weight: Tensor) -> Tensor:
    """Counts in a shape that broadcasts against a weight, which may have more rows than there are tokens: (rows, 1)."""
    rows = torch.zeros(weight.shape[0], 1, device=weight.device)
    rows[: len(counts), 0] = counts[: len(rows)].to(weight.device)
    return rows


def _head_name(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> str:
    head = output_head(model)
    weight = getattr(head, "weight", None)
    for key, parameter in parameters.items():
        if parameter is weight:
            return key
    # Engines that shard may have parameters of their own under the names of the model.
    for name, parameter in model.named_parameters():
        if parameter is weight and name in parameters:
            return name
    raise ValueError(
        "The score needs the rows of the target tokens, but the weight of the output head is not among the parameters that "
        "are scored. Where attribution_include or attribution_exclude leave it out, change them."
    )


def _ids_of(model: nn.Module, names: Iterable[str]) -> set[int]:
    found: set[int] = set()
    for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        for name in names:
            value: Any = getattr(config, name, None)
            found |= {value} if isinstance(value, int) else set(value or ())
    return found
