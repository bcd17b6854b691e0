"""Greedy continuations of many prompts in one batch that stays full: a prompt enters where an answer has ended."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from wagle_trainer.evaluation.decoding_rows import decoding_rows
from wagle_trainer.evaluation.kept_prompts import KeptPrompts
from wagle_trainer.evaluation.prompt_states import PromptStates, prompt_states, read_behind
from wagle_trainer.evaluation.roomy_cache import ROOM, with_room, without_gaps
from wagle_trainer.evaluation.shrinking_batches import CACHE
from wagle_trainer.models.architecture import text_config, unwrap

# Prompts enter when so large a share of the batch is free: each time costs a forward pass of its own.
FREE_SHARE = 0.125
# Steps between two looks at which answers have ended: their rows leave at little cost.
LOOK_EVERY = 8


def generate_continuously(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    config: GenerationConfig,
    stop: Sequence[int],
    *,
    batch_size: int,
    common: PromptStates | None = None,
    kept: KeptPrompts | None = None,
    lengths: Sequence[int] | None = None,
    ended: Callable[[int], object] = lambda number: None,
) -> list[list[int]]:
    """As `model.generate` with this greedy config, whose settings must not look at the tokens of the prompt.

    Args:
        model: see `can_resume` in generation_starts.py.
        prompts: tokens; each has at least two behind `common`.
        limits: most new tokens of each.
        config: with `pad_token_id`.
        stop: end-of-sequence tokens.
        batch_size: most prompts that enter in one forward pass, and fewest that are continued at once while there are so
            many: `decoding_rows` says how many more.
        common: states that all prompts begin with.
        kept: states of prompts.
        lengths: first tokens of each prompt that `kept` may have; all tokens by default.
        ended: called with the number of answers that have ended.

    Returns:
        The new tokens of each prompt, up to its end or limit.
    """
    batch = RunningBatch(model, prompts, limits, config, stop, batch_size, common, kept, lengths)
    while batch.waiting or batch.running:
        enough = False
        try:
            batch.refill()
            ended(batch.step())
            enough = True
        except torch.OutOfMemoryError:
            if batch.rows == batch_size:
                raise
        if not enough:  # out of the `except` clause, whose traceback holds tensors
            batch.restart(batch_size)
    return batch.new


class RunningBatch:
    """Prompts that wait, and those whose answers are being written.

    Args:
        model, prompts, limits, config, stop, batch_size, common, kept, lengths: as for `generate_continuously`.

    Attributes:
        new: tokens of each answer, so far.
        waiting: indices of prompts that have not entered.
        running: indices of those in the batch, in the order of its rows.
        rows: most of them at once.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        config: GenerationConfig,
        stop: Sequence[int],
        batch_size: int,
        common: PromptStates | None,
        kept: KeptPrompts | None,
        lengths: Sequence[int] | None,
    ):
        self.model, self.prompts, self.limits, self.config = model, prompts, limits, config
        self.stop, self.batch_size, self.common = set(stop), batch_size, common
        self.kept, self.lengths = kept, list(map(len, prompts)) if lengths is None else lengths
        self.new: list[list[int]] = [[] for _ in prompts]
        self.rows: int | None = None  # the states of the first prompts say how much memory a row takes
        self.restart(self.rows)

    def restart(self, rows: int | None) -> None:
        """Let all whose answers have not ended wait; they enter behind the tokens that they have."""
        self.rows = rows
        self.waiting = deque(index for index in range(len(self.prompts)) if not self._has_ended(index))
        self.running: list[int] = []
        self.states: PromptStates | None = None
        self.last = torch.empty(0, 1, dtype=torch.long, device=next(self.model.parameters()).device)

    def refill(self) -> None:
        """Let prompts enter, if there is room for enough of them."""
        free = (self.rows or self.batch_size) - len(self.running)
        if not self.waiting or (self.running and free < max(1, FREE_SHARE * (self.rows or self.batch_size))):
            return
        parts = [] if self.states is None else [self.states]
        self.states = None
        while self.waiting and len(self.running) < (self.rows or self.batch_size):
            number = min(self.batch_size, (self.rows or self.batch_size) - len(self.running), len(self.waiting))
            entering = [self.waiting.popleft() for _ in range(number)]
            parts += self._enter(entering)
            if self.rows is None:
                self.rows = self._decoding_rows(parts[0])
        self.states = joined(self.model, parts)
        with_room(self.states.cache)

    def _enter(self, indices: Sequence[int]) -> list[PromptStates]:
        """Add rows to the batch; the states of all their tokens but the last, in parts."""
        kept = {} if self.kept is None else {i: self.kept.take(self.prompts[i][: self.lengths[i]]) for i in indices}
        found = {index: states for index, states in kept.items() if states is not None}
        entering = [*found, *(index for index in indices if index not in found)]
        given = [[*self.prompts[index], *self.new[index]] for index in entering]
        self.last = torch.cat([self.last, self.last.new_tensor([tokens[-1:] for tokens in given])])
        self.running += entering
        parts = []
        if found:
            rests = [tokens[int(states.lengths) : -1] for tokens, states in zip(given, found.values(), strict=False)]
            parts.append(read_behind(self.model, joined(self.model, list(found.values())), rests))
        if len(found) < len(entering):
            parts.append(prompt_states(self.model, [tokens[:-1] for tokens in given[len(found) :]], self.common))
        return parts

    def _decoding_rows(self, states: PromptStates) -> int:
        longest = max(len(prompt) + limit for prompt, limit in zip(self.prompts, self.limits, strict=True))
        vocabulary = getattr(text_config(unwrap(self.model)), "vocab_size", 0)
        return decoding_rows(states, len(self.prompts), longest + ROOM, vocabulary, self.batch_size)

    def step(self) -> int:
        """Write some tokens behind each; rows whose answers have ended leave. How many have."""
        assert self.states is not None
        part = copy.deepcopy(self.config)
        part.max_new_tokens = min(LOOK_EVERY, min(self.limits[index] - len(self.new[index]) for index in self.running))
        tokens, states = _step(self.model, self.states, self.last, part)
        for index, found in zip(self.running, tokens.tolist(), strict=True):
            end = next((place + 1 for place, token in enumerate(found) if token in self.stop), None)
            self.new[index] += found[:end]
        going = without_gaps([row for row, index in enumerate(self.running) if not self._has_ended(index)])
        number = len(self.running) - len(going)
        self.last = tokens[going, -1:]
        self.states = None if not going else states.select(going) if number else states
        self.running = [self.running[row] for row in going]
        return number

    def _has_ended(self, index: int) -> bool:
        new = self.new[index]
        return len(new) >= self.limits[index] or bool(new and new[-1] in self.stop)


def _step(model: Any, states: PromptStates, last: Tensor, config: GenerationConfig) -> tuple[Tensor, PromptStates]:
    """The next tokens behind `last`, and the states without those of the last one."""
    config.return_dict_in_generate = True
    ids = torch.cat([torch.full_like(states.mask, config.pad_token_id), last], dim=1)
    mask = torch.cat([states.mask, torch.ones_like(last)], dim=1)
    result = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **{CACHE: states.cache})
    tokens = result.sequences[:, ids.shape[1] :]
    mask = torch.cat([states.mask, torch.ones_like(tokens)], dim=1)
    return tokens, PromptStates(result[CACHE], mask, mask.sum(1))


def joined(model: Any, parts: Sequence[PromptStates]) -> PromptStates:
    """The rows of all parts, which are used up.

    Places that no row of a part uses are left out, and each part ends at the last place: so the width is that of the
    longest text, however long ago others ended.
    """
    if len(parts) == 1:
        return parts[0]
    kept = [states.mask.any(0).nonzero().squeeze(-1) for states in parts]
    width = max(map(len, kept))

    def join(tensors: Sequence[Tensor], dim: int) -> Tensor:
        cut = [
            tensor.index_select(dim, places.to(tensor.device)) for tensor, places in zip(tensors, kept, strict=True)
        ]
        # `pad` counts from the last dimension.
        other = [0, 0] * (tensors[0].ndim - 1 - dim)
        return torch.cat([F.pad(tensor, [*other, width - tensor.shape[dim], 0]) for tensor in cut])

    cache = DynamicCache(config=unwrap(model).config)
    for index in range(len(parts[0].cache.layers)):
        layers = [states.cache.layers[index] for states in parts]
        cache.update(join([layer.keys for layer in layers], 2), join([layer.values for layer in layers], 2), index)
        for states in parts:
            states.cache.layers[index] = DynamicLayer()  # so that all layers are not held twice
    mask = join([states.mask for states in parts], 1)
    return PromptStates(cache, mask, mask.sum(1))
