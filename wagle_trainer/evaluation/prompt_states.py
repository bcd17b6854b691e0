"""Keys and values of prompts, which what follows them starts from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from wagle_trainer.evaluation.padded_batches import pad
from wagle_trainer.models.architecture import forward_parameters, keeps_some_logits, takes_positions, unwrap
from wagle_trainer.models.log_probs import IGNORE_INDEX

# Tokens that a batch must save. A forward pass of its own reads all weights once more, which costs as much as 50 tokens
# (SmolLM2-135M on a CPU) to 300 (a tiny model, or a GPU that waits for its memory); so sharing pays from a few hundred on.
MIN_SAVED = 512


@dataclass(frozen=True)
class PromptStates:
    """What a model has computed of some prompts; those behind the longest lie behind padding.

    Attributes:
        cache: keys and values of every layer.
        mask: int64 (prompts, length), 0 on padding.
        lengths: int64 (prompts,), tokens of each.
    """

    cache: Any
    mask: Tensor
    lengths: Tensor

    @classmethod
    def empty(cls, model: nn.Module, number: int) -> PromptStates:
        """States of `number` prompts without tokens."""
        device = next(model.parameters()).device
        lengths = torch.zeros(number, dtype=torch.long, device=device)
        return cls(DynamicCache(config=unwrap(model).config), lengths[:, None][:, :0], lengths)

    def select(self, rows: Sequence[int]) -> PromptStates:
        """The states of `rows`, each as often as it occurs. These here are used up: their cache is the new one."""
        indices = torch.tensor(rows)  # on the host, since layers may lie on several devices
        self.cache.batch_select_indices(indices)
        return PromptStates(self.cache, self.mask[indices], self.lengths[indices])

    def repeat(self, number: int) -> PromptStates:
        """The states of one prompt, `number` times. These here stay as they are."""
        return PromptStates(copy.deepcopy(self.cache), self.mask, self.lengths).select([0] * number)


class Continued(nn.Module):
    """A model that reads on behind cached states, which grow as it does.

    Args:
        module: the model.
        states: of the texts that the rows of a batch continue.
    """

    def __init__(self, module: nn.Module, states: PromptStates):
        super().__init__()
        self.module, self.states = module, states

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
        states = self.states
        if takes_positions(self.module):
            steps = torch.arange(input_ids.shape[1], device=input_ids.device)
            inputs["position_ids"] = states.lengths[:, None] + steps
        mask = torch.cat([states.mask, attention_mask], dim=1)
        return self.resume(input_ids, attention_mask=mask, **inputs)

    def resume(self, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's output behind the states, with a mask and positions that reach over both."""
        inputs |= {cache_name(self.module): self.states.cache, "use_cache": True}
        return self.module(input_ids=input_ids, **inputs)


def cache_name(model: nn.Module) -> str:
    """What the forward pass calls the cache: `cache` from Transformers 5.23 on, `past_key_values` before."""
    return "cache" if "cache" in forward_parameters(model) else "past_key_values"


def prompt_states(
    model: nn.Module, prompts: Sequence[Sequence[int]], common: PromptStates | None = None
) -> PromptStates:
    """States of prompts, in one forward pass; call it without gradients.

    Args:
        model: see `can_share`.
        prompts: tokens; each has at least one behind `common`.
        common: states of one prompt that all begin with.
    """
    start = 0 if common is None else int(common.lengths[0])
    states = PromptStates.empty(model, len(prompts)) if common is None else common.repeat(len(prompts))
    return read_behind(model, states, [prompt[start:] for prompt in prompts])


def read_behind(model: nn.Module, states: PromptStates, rests: Sequence[Sequence[int]]) -> PromptStates:
    """States of texts that go on behind others, which are used up: in one forward pass, if there is anything to read.

    Args:
        model: see `can_share`.
        states: of the texts that go on.
        rests: tokens behind each.
    """
    if not any(rests):
        return states
    ids, mask = (
        pad_right(rests, 0, states.mask.device),
        pad_right([[1] * len(rest) for rest in rests], 0, states.mask.device),
    )
    Continued(model, states)(ids, mask, **({"logits_to_keep": 1} if keeps_some_logits(model) else {}))
    return PromptStates(states.cache, torch.cat([states.mask, mask], dim=1), states.lengths + mask.sum(1))


def pad_right(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    """`rows` of tokens on a device, filled up with `value` behind each."""
    return pad(rows, value, "right").to(device)


def prompt_length(row: Mapping[str, Sequence[int]]) -> int:
    """Tokens of an example before the first label; all of them if there is none."""
    return next((i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX), len(row["labels"]))


def common_prompt(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, so many that each has two left: one for its states and its last."""
    if not prompts:
        return []
    first, last = (
        min(map(tuple, prompts)),
        max(map(tuple, prompts)),
    )  # in the order of their tokens: all others lie between these two
    limit = max(0, min(map(len, prompts)) - 2)
    return list(first[: next((i for i in range(limit) if first[i] != last[i]), limit)])


def common_states(model: nn.Module, prompts: Sequence[Sequence[int]]) -> PromptStates | None:
    """States of what all prompts begin with; None where it saves next to nothing."""
    common = common_prompt(prompts)
    return prompt_states(model, [common]) if common_saves(prompts) else None


def common_saves(prompts: Sequence[Sequence[int]]) -> bool:
    """Whether it pays to compute once what all prompts begin with: in one pass over a few tokens, for all batches."""
    saved = len(common_prompt(prompts)) * (len(prompts) - 1)
    return saved > 0 and saved >= MIN_SAVED // 2
