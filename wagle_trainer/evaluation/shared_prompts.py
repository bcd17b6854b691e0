"""Which answers share their prompts, on which models, and how much that saves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from wagle_trainer.engines.engine import current_engine
from wagle_trainer.evaluation import prompt_states as states_of_prompts
from wagle_trainer.evaluation.answer_trees import AnswerTree, pack, tree_log_probs
from wagle_trainer.evaluation.prompt_states import (
    Continued,
    PromptStates,
    cache_name,
    common_prompt,
    pad_right,
    prompt_length,
    prompt_states,
)
from wagle_trainer.models.architecture import forward_parameters, takes_positions, text_config, unwrap
from wagle_trainer.models.causality import TOLERANCE
from wagle_trainer.models.log_probs import IGNORE_INDEX, TokenLogProbs, token_log_probs
from wagle_trainer.models.modes import evaluation_mode, preserved_rng

logger = logging.getLogger(__name__)

Example = Mapping[str, Sequence[int]]
# Tokens whose keys and values one batch holds at once: not more than generation holds for 32 rows.
MAX_CACHED = 8192


def shared_log_probs(
    model: nn.Module, rows: Sequence[Mapping[str, Sequence[int]]], common: PromptStates | None = None, **options: Any
) -> TokenLogProbs:
    """Log-probabilities of answers, with each prompt run once; call it without gradients.

    Args:
        model: see `can_share`.
        rows: `input_ids` and `labels`; those with the same tokens before the first label share a prompt.
        common: states that all prompts begin with.
        options: as for `token_log_probs`.

    Returns:
        What `token_log_probs` gives, aligned with the answers: column 0 is the first token after the prompt.
    """
    prompts: dict[tuple[int, ...], int] = {}
    starts = [prompt_length(row) for row in rows]
    # The last token of the prompt predicts the first of the answer, so it goes with the answer.
    owners = [
        prompts.setdefault(tuple(row["input_ids"][: start - 1]), len(prompts))
        for row, start in zip(rows, starts, strict=True)
    ]
    states = prompt_states(model, list(prompts), common).select(owners)
    device = states.mask.device
    tails = [row["input_ids"][start - 1 :] for row, start in zip(rows, starts, strict=True)]
    labels = [row["labels"][start - 1 :] for row, start in zip(rows, starts, strict=True)]
    batch = {
        "input_ids": pad_right(tails, 0, device),
        "attention_mask": pad_right([[1] * len(tail) for tail in tails], 0, device),
        "labels": pad_right(labels, IGNORE_INDEX, device),
    }
    return token_log_probs(Continued(model, states), batch, **options)


# Which answers share


def shared_batches(
    examples: Sequence[Example], batch_size: int, *, trees: bool, window: float = math.inf
) -> tuple[list[list[int]], list[int]]:
    """Batches of answers that share prompts, and what is left over.

    Questions go by their size, so that there is little padding.

    Args:
        examples: `input_ids` and `labels`.
        batch_size: most answers of a batch.
        trees: `tree_log_probs` runs them, where answers share what they begin with; else `shared_log_probs`.
        window: rows have to be shorter, see `attention_window`.

    Returns:
        Positions of the examples in each batch, and of those in none: they save too little.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        prompt = tuple(example["input_ids"][: prompt_length(example)])
        if len(prompt) > 1:
            groups.setdefault(prompt, []).append(index)
    common = len(common_prompt(list(groups)))

    def cost(batch: Sequence[int]) -> tuple[int, int, int]:
        return (_tree_cost if trees else _cache_cost)([examples[index] for index in batch], common)

    parts = [
        group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
    ]
    sizes = [cost(part)[0] / (1 if trees else len(part)) for part in parts]
    batches: list[list[int]] = []
    for position in sorted(range(len(parts)), key=lambda position: -sizes[position]):
        joined = [*batches[-1], *parts[position]] if batches else []
        if joined and len(joined) <= batch_size and cost(joined)[1] <= MAX_CACHED:
            batches[-1] = joined
        else:
            batches.append(parts[position])

    def pays(batch: Sequence[int]) -> bool:
        computed, held, width = cost(batch)
        saved = sum(len(examples[index]["input_ids"]) for index in batch) - computed
        return held <= MAX_CACHED and width < window and saved >= states_of_prompts.MIN_SAVED

    chosen = [batch for batch in batches if pays(batch)]
    taken = {index for batch in chosen for index in batch}
    return chosen, [index for index in range(len(examples)) if index not in taken]


def _tree_cost(rows: Sequence[Example], common: int) -> tuple[int, int, int]:
    """Tokens that `tree_log_probs` computes for a batch, those whose keys and values it holds, and those of a row."""
    trees: dict[tuple[int, ...], AnswerTree] = {}
    for row in rows:
        trees.setdefault(tuple(row["input_ids"][: prompt_length(row)]), AnswerTree()).add(row["input_ids"][common:-1])
    sizes = [len(tree.tokens) for tree in trees.values()]
    number = 1 + max(row for row, _ in pack(sizes))
    return number * max(sizes), number * (max(sizes) + common), max(sizes) + common


def _cache_cost(rows: Sequence[Example], common: int) -> tuple[int, int, int]:
    """Tokens that `shared_log_probs` computes for a batch, those whose keys and values it holds, and those of a row."""
    starts = [prompt_length(row) for row in rows]
    tail = max(len(row["input_ids"]) - start + 1 for row, start in zip(rows, starts, strict=True))
    prompts = len({tuple(row["input_ids"][:start]) for row, start in zip(rows, starts, strict=True)})
    width = max(starts) + tail
    return prompts * (max(starts) - common) + len(rows) * tail, len(rows) * width, width


# Which models can


class _Probes:
    """Whether a model gives answers that share the log-probabilities that they have alone; found out once per model."""

    def __init__(self, run: Callable[..., TokenLogProbs]):
        self.run = run
        self.known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __call__(self, model: nn.Module) -> bool:
        if current_engine().gathers_weights_in_forward:  # all processes must run the same passes
            return False
        if model not in self.known:
            self.known[model] = _keeps_all_states(model) and _probe(model, self.run)
        return self.known[model]


_cached, _branching = _Probes(shared_log_probs), _Probes(tree_log_probs)


def can_share(model: nn.Module) -> bool:
    """Whether an answer behind cached states has the log-probabilities that it has behind its prompt.

    Every layer has to keep the keys and values of all tokens, each row its own: recurrent layers and encoder-decoders do
    not, and sliding windows do up to their length, see `attention_window`. What remains is probed once per model: prompts
    and answers of several lengths, both ways. All processes call this together.
    """
    return _cached(model)


def can_branch(model: nn.Module) -> bool:
    """Whether answers that branch off in one row have the log-probabilities that they have alone.

    Beyond what `can_share` needs, the forward pass takes positions and a mask of every pair of tokens (not with
    FlashAttention, nor with ALiBi). Probed as there; all processes call this together.
    """
    # Not probed: kernels for masks of another kind would read beyond theirs, which ends a process on a GPU. Without the
    # attribute no model branches, and tests/evaluation/test_shared_prompts.py fails.
    attention = getattr(text_config(model), "_attn_implementation", None)
    return attention in ("sdpa", "eager") and takes_positions(model) and _branching(model)


def _keeps_all_states(model: nn.Module) -> bool:
    inner = unwrap(model)
    config = getattr(inner, "config", None)
    parameters = forward_parameters(model)
    if (
        getattr(config, "is_encoder_decoder", False)
        or getattr(inner, "_is_stateful", False)
        or text_config(model) is None
    ):
        return False
    if cache_name(model) not in parameters or not {"attention_mask", "use_cache"} <= set(parameters):
        return False
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in kinds for layer in DynamicCache(config=config).layers)


def attention_window(model: nn.Module) -> float:
    """Tokens of the shortest sliding window or chunk of a model that `can_share`: in shorter rows it cuts off nothing."""
    layers = DynamicCache(config=unwrap(model).config).layers
    return min((layer.sliding_window for layer in layers if layer.is_sliding), default=math.inf)


def _probe(model: nn.Module, run: Callable[..., TokenLogProbs]) -> bool:
    vocabulary = getattr(text_config(model), "vocab_size", 16)

    def example(prompt: int, answer: int, seed: int) -> dict[str, list[int]]:
        """A prompt that begins as all do; several answers to it have several seeds."""
        tokens = [5, 3, *(7 * i + prompt for i in range(prompt)), *(11 * i + seed for i in range(answer))]
        ids = [token % vocabulary for token in tokens]
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * (prompt + 2) + ids[prompt + 2 :]}

    rows = [example(*sizes) for sizes in ((2, 3, 1), (2, 1, 2), (6, 2, 3), (6, 4, 4), (6, 5, 4))]
    rows[-1]["input_ids"][-2] = rows[-1]["labels"][-2] = 1  # begins as the one before
    device = next(model.parameters()).device
    batch = {
        "input_ids": pad_right([row["input_ids"] for row in rows], 0, device),
        "attention_mask": pad_right([[1] * len(row["input_ids"]) for row in rows], 0, device),
        "labels": pad_right([row["labels"] for row in rows], IGNORE_INDEX, device),
    }
    with preserved_rng(), evaluation_mode(model):
        try:
            plain = token_log_probs(model, batch)
            shared = run(model, rows, prompt_states(model, [rows[0]["input_ids"][:2]]))
        except Exception as error:  # whatever a model raises that takes no cache of this kind: it runs the plain way
            logger.debug("%s does not share prompts: %r", type(unwrap(model)).__name__, error)
            return False
    # Means, since single log-probabilities in bfloat16 lie a rounding of the logits apart.
    difference = (plain.log_probs[plain.mask] - shared.log_probs[shared.mask]).abs().mean().item()
    return difference <= TOLERANCE.get(next(model.parameters()).dtype, TOLERANCE[torch.bfloat16])
