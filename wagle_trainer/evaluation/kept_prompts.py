"""Keys and values of prompts that scoring has computed, for the generation that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from wagle_trainer.evaluation.prompt_states import PromptStates
from wagle_trainer.utils.free_memory import free_memory

# Share of the free memory that kept prompts may take.
SHARE = 0.125


class KeptPrompts:
    """States of prompts without their last token, as far as memory of the host allows.

    On a GPU nothing is kept: there it reads prompts quickly, and its memory is needed for other things.

    Args:
        prompts: tokens of those that are wanted.
    """

    def __init__(self, prompts: Sequence[Sequence[int]]):
        self._wanted = {tuple(prompt[:-1]) for prompt in prompts}
        self._states: dict[tuple[int, ...], PromptStates] = {}
        self._left: float | None = None  # bytes

    def keep(self, model: nn.Module, prompt: Sequence[int], cache: Any, row: int, before: int, column: int) -> None:
        """Copy the states of a prompt out of a batch, if it is wanted.

        Args:
            model: what computed them.
            prompt: tokens, the last one included.
            cache: keys and values of the batch.
            row: of the prompt in it.
            before: places at the beginning that all rows share, with the first tokens of the prompt.
            column: place behind these where the others begin.
        """
        tokens = tuple(prompt[:-1])
        plain = all(type(layer) is DynamicLayer and layer.keys.device.type == "cpu" for layer in cache.layers)
        if not plain or tokens not in self._wanted or tokens in self._states:
            return
        if self._left is None:
            self._left = SHARE * free_memory(torch.device("cpu"))
        sizes = (
            (t[:1, ..., :1, :].numel() * t.element_size())
            for layer in cache.layers
            for t in (layer.keys, layer.values)
        )
        size = len(tokens) * sum(sizes)
        if size > self._left:
            return
        self._left -= size
        places = torch.tensor([*range(before), *(before + column + i for i in range(len(tokens) - before))])
        states = PromptStates.empty(model, 1)
        for index, layer in enumerate(cache.layers):
            keys, values = (tensor[row : row + 1].index_select(-2, places) for tensor in (layer.keys, layer.values))
            states.cache.update(keys, values, index)
        mask = torch.ones(1, len(tokens), dtype=torch.long)
        self._states[tokens] = PromptStates(states.cache, mask, mask.sum(1))

    def take(self, prompt: Sequence[int]) -> PromptStates | None:
        """The states of a prompt, which are no longer kept; None if there are none."""
        return self._states.pop(tuple(prompt[:-1]), None)
