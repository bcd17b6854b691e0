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
from transformers.cache_utils import DynamicCache

from wagle_trainer.evaluation.prompt_states import PromptStates, prompt_states
from wagle_trainer.evaluation.roomy_cache import with_room
from wagle_trainer.evaluation.shrinking_batches import CACHE, CHUNK
from wagle_trainer.models.architecture import unwrap

# Prompts enter when so large a share of the batch is free: each time costs a forward pass of its own.
FREE_SHARE = 0.125


def generate_continuously(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    config: GenerationConfig,
    stop: Sequence[int],
    *,
    batch_size: int,
    common: PromptStates | None = None,
    ended: Callable[[int], object] = lambda number: None,
) -> list[list[int]]:
    """As `model.generate` with this greedy config, whose settings must not look at the tokens of the prompt.

    Args:
        model: see `can_resume` in generation_starts.py.
        prompts: tokens; each has at least two behind `common`.
        limits: most new tokens of each.
        config: with `pad_token_id`.
        stop: end-of-sequence tokens.
        batch_size: most prompts at once.
        common: states that all prompts begin with.
        ended: called with the number of answers that have ended.

    Returns:
        The new tokens of each prompt, up to its end or limit.
    """
    waiting, running = deque(range(len(prompts))), list[int]()
    new: list[list[int]] = [[] for _ in prompts]
    states: PromptStates | None = None
    last = torch.empty(0, 1, dtype=torch.long, device=next(model.parameters()).device)
    while waiting or running:
        free = batch_size - len(running)
        if waiting and (not running or free >= max(1, FREE_SHARE * batch_size)):
            entering = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            fresh = prompt_states(model, [prompts[index][:-1] for index in entering], common)
            states = fresh if states is None else _joined(model, states, fresh)
            with_room(states.cache)
            last = torch.cat([last, last.new_tensor([[prompts[index][-1]] for index in entering])])
            running += entering
        assert states is not None
        part = copy.deepcopy(config)
        part.max_new_tokens = min(CHUNK, min(limits[index] - len(new[index]) for index in running))
        tokens, states = _step(model, states, last, part)
        going = []
        for row, (index, found) in enumerate(zip(running, tokens.tolist(), strict=True)):
            end = next((place + 1 for place, token in enumerate(found) if token in stop), None)
            new[index] += found[:end]
            if end is None and len(new[index]) < limits[index]:
                going.append(row)
        ended(len(running) - len(going))
        last = tokens[going, -1:]
        if len(going) < len(running):
            states = states.select(going) if going else None
            running = [running[row] for row in going]
    return new


def _step(model: Any, states: PromptStates, last: Tensor, config: GenerationConfig) -> tuple[Tensor, PromptStates]:
    """The next tokens behind `last`, and the states without those of the last one."""
    config.return_dict_in_generate = True
    ids = torch.cat([torch.full_like(states.mask, config.pad_token_id), last], dim=1)
    mask = torch.cat([states.mask, torch.ones_like(last)], dim=1)
    result = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **{CACHE: states.cache})
    tokens = result.sequences[:, ids.shape[1] :]
    mask = torch.cat([states.mask, torch.ones_like(tokens)], dim=1)
    return tokens, PromptStates(result[CACHE], mask, mask.sum(1))


def _joined(model: Any, one: PromptStates, other: PromptStates) -> PromptStates:
    """The rows of both, without the places that none of them uses."""
    parts = [(states, states.mask.any(0).nonzero().squeeze(-1)) for states in (one, other)]
    width = max(len(kept) for _, kept in parts)

    def join(tensors: Sequence[Tensor], dim: int) -> Tensor:
        cut = [
            tensor.index_select(dim, kept.to(tensor.device)) for tensor, (_, kept) in zip(tensors, parts, strict=True)
        ]
        # `pad` counts from the last dimension.
        behind = [0, 0] * (tensors[0].ndim - 1 - dim)
        return torch.cat([F.pad(tensor, [*behind, 0, width - tensor.shape[dim]]) for tensor in cut])

    cache = DynamicCache(config=unwrap(model).config)
    for layer, pair in enumerate(zip(one.cache, other.cache, strict=True)):
        keys, values = (join([states[kind] for states in pair], 2) for kind in (0, 1))
        cache.update(keys, values, layer)
    mask = join([one.mask, other.mask], 1)
    return PromptStates(cache, mask, mask.sum(1))
