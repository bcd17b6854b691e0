"""Greedy continuations of a batch that shrinks: rows whose answer has ended are no longer computed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from wagle_trainer.evaluation.roomy_cache import with_room
from wagle_trainer.models.architecture import unwrap

# What `generate` calls the cache; tests/evaluation/test_generation.py fails where it has another name.
CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
# Steps between two looks at which rows have ended.
CHUNK = 16
# Settings of a model's generation config that count from where `generate` began, or look at what it did before.
_FROM_THE_BEGINNING = (
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "encoder_repetition_penalty",
    "guidance_scale",
    "prompt_lookup_num_tokens",
    "stop_strings",
    "max_time",
    "cache_implementation",
    "cache_config",
    "watermarking_config",
    "penalty_alpha",
)


def can_shrink(model: Any) -> bool:
    """Whether rows of a batch can be left out while `generate` goes on: each has keys and values of its own.

    Not so for recurrent layers and sliding windows, nor for settings that count steps from the beginning.
    """
    config = model.generation_config
    if any(getattr(config, name, None) not in (None, 0, 1.0) for name in _FROM_THE_BEGINNING):
        return False
    if getattr(model, "_is_stateful", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def generate_shrinking(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: GenerationConfig,
    stop: list[int],
    cache: Any = None,
) -> Tensor:
    """As `model.generate` with this greedy config, but rows that have ended are left out.

    Args:
        model: see `can_shrink`.
        input_ids, attention_mask: (batch, prompt).
        config: with `max_new_tokens` and `pad_token_id`.
        stop: end-of-sequence tokens.
        cache: keys and values of the first tokens of `input_ids`, if there are any yet.

    Returns:
        (batch, prompt + new tokens); behind an end there are pad tokens.
    """
    new = input_ids.new_full((len(input_ids), config.max_new_tokens), config.pad_token_id)
    stops = torch.tensor(stop, device=input_ids.device)
    rows, ids, mask, done = torch.arange(len(input_ids), device=input_ids.device), input_ids, attention_mask, 0
    given = {CACHE: with_room(DynamicCache(config=unwrap(model).config) if cache is None else cache)}
    while done < config.max_new_tokens:
        part = copy.deepcopy(config)
        part.max_new_tokens, part.return_dict_in_generate = min(CHUNK, config.max_new_tokens - done), True
        result = model.generate(input_ids=ids, attention_mask=mask, generation_config=part, **given)
        sequences = result.sequences
        fresh = sequences[:, ids.shape[1] :]
        new[rows, done : done + fresh.shape[1]] = fresh
        done += fresh.shape[1]
        going = (~torch.isin(fresh, stops).any(1)).nonzero().squeeze(-1)
        if not len(going):
            break
        mask = torch.cat([mask, mask.new_ones(fresh.shape)], dim=1)
        if len(going) < len(rows):
            given[CACHE].batch_select_indices(going)
            rows, sequences, mask = rows[going], sequences[going], mask[going]
        ids = sequences
    return torch.cat([input_ids, new[:, :done]], dim=1)
