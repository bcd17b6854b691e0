"""What a batch's generation begins with: tokens, and keys and values of those that rows share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from wagle_trainer.evaluation import prompt_states as states_of_prompts
from wagle_trainer.evaluation.padded_batches import pad
from wagle_trainer.evaluation.prompt_states import (
    PromptStates,
    common_prompt,
    common_saves,
    common_states,
    prompt_states,
)
from wagle_trainer.evaluation.shared_prompts import can_share
from wagle_trainer.evaluation.shrinking_batches import CACHE, can_shrink
from wagle_trainer.models.architecture import text_config, unwrap
from wagle_trainer.models.modes import preserved_rng

logger = logging.getLogger(__name__)


class GenerationStarts:
    """The starts of batches; what all prompts begin with is computed once, and repeated prompts once in each batch.

    Args:
        model: a model with `generate`.
        prompts: those of all batches, if they may share; else none.
        filler: the padding token.
        masked_token: a token that is not attended to; None for none.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], filler: int, masked_token: int | None):
        self.model, self.filler, self.masked_token = model, filler, masked_token
        self.shortest = min(map(len, prompts), default=0)
        self.shares = (_repeats_save(prompts) or common_saves(prompts)) and can_resume(model, filler)
        self.common = common_states(model, prompts) if self.shares else None
        self.prefix = [] if self.common is None else common_prompt(prompts)

    def of(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Any]:
        """Tokens and mask of a batch, (rows, length), and the cache of the first of them or None."""
        if self.shares and _repeats_save(rows) and min(map(len, rows)) > 1:
            return start_behind_prompts(self.model, rows, self.common, self.filler)
        if self.common is not None:
            return start_behind_common(self.model, rows, self.prefix, self.common, self.filler)
        return start_plain(self.model, rows, self.filler, self.masked_token)

    def can_refill(self) -> bool:
        """Whether prompts can enter a batch that is running."""
        return (
            self.shortest > 1  # the last token of each goes with those that it starts
            and is_plain_greedy(self.model.generation_config)
            and can_resume(self.model, self.filler)
        )


def start_plain(
    model: Any, rows: Sequence[Sequence[int]], filler: int, masked_token: int | None = None
) -> tuple[Tensor, Tensor, Any]:
    """Tokens and mask of prompts that are padded on the left, and no cache."""
    device = next(model.parameters()).device
    ids = pad(rows, filler, "left").to(device)
    return ids, pad([[int(token != masked_token) for token in row] for row in rows], 0, "left").to(device), None


def start_behind_common(
    model: Any, rows: Sequence[Sequence[int]], prefix: Sequence[int], common: PromptStates, filler: int
) -> tuple[Tensor, Tensor, Any]:
    """As `start_plain`, with the cache of the prefix; the padding lies behind it."""
    ids, mask, _ = start_plain(model, [row[len(prefix) :] for row in rows], filler)
    states = common.repeat(len(rows))
    first = torch.tensor(prefix, device=ids.device).expand(len(rows), -1)
    return torch.cat([first, ids], 1), torch.cat([states.mask, mask], 1), states.cache


def start_behind_prompts(
    model: Any, rows: Sequence[Sequence[int]], common: PromptStates | None, filler: int
) -> tuple[Tensor, Tensor, Any]:
    """Tokens, mask and a cache in which each prompt was run once; its last token follows for every row."""
    prompts: dict[tuple[int, ...], int] = {}
    owners = [prompts.setdefault(tuple(row), len(prompts)) for row in rows]
    states = prompt_states(model, [prompt[:-1] for prompt in prompts], common).select(owners)
    device = states.mask.device
    ids = pad([row[:-1] for row in rows], filler, "right").to(device)
    last = torch.tensor([[row[-1]] for row in rows], device=device)
    return torch.cat([ids, last], 1), torch.cat([states.mask, torch.ones_like(last)], 1), states.cache


def _repeats_save(rows: Sequence[Sequence[int]]) -> bool:
    """Whether it pays to run each prompt once."""
    saved = sum(map(len, rows)) - sum(map(len, {tuple(row) for row in rows}))
    return saved > 0 and saved >= states_of_prompts.MIN_SAVED


# Settings of a generation config that leave the most likely token the most likely one.
_HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"),
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "use_cache", "num_beams", "num_return_sequences", "cache_implementation"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("_from_model_config", "cache_config"),
}


def is_plain_greedy(config: GenerationConfig) -> bool:
    """Whether greedy decoding with a model's own settings takes the most likely token at every step."""
    return set(config.to_diff_dict()) <= _HARMLESS


_CAN_RESUME: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def can_resume(model: Any, filler: int) -> bool:
    """Whether `generate` gives the same logits behind cached states of a prompt as behind the prompt itself.

    Probed once per model, behind the beginning of all prompts and behind each prompt.
    """
    if not (can_shrink(model) and can_share(model)):
        return False
    if model not in _CAN_RESUME:
        vocabulary = getattr(text_config(unwrap(model)), "vocab_size", 16)
        rows = [[token % vocabulary for token in row] for row in ([5, 3, 7, 9], [5, 3, 4, 8, 6, 2], [5, 3, 7, 9])]
        try:
            with torch.no_grad(), preserved_rng():
                common = prompt_states(model, [rows[0][:2]])
                plain = _probe(model, filler, *start_plain(model, rows, filler))
                _CAN_RESUME[model] = all(
                    same_logits(plain, _probe(model, filler, *start))
                    for start in (
                        start_behind_common(model, rows, rows[0][:2], common, filler),
                        start_behind_prompts(model, rows, common, filler),
                    )
                )
        except Exception as error:  # whatever a model raises whose `generate` takes no cache: it runs the plain way
            logger.debug("%s does not generate behind a cache: %r", type(unwrap(model)).__name__, error)
            _CAN_RESUME[model] = False
    return _CAN_RESUME[model]


def _probe(model: Any, filler: int, ids: Tensor, mask: Tensor, cache: Any) -> Any:
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=3,
        pad_token_id=filler,
        output_logits=True,
        return_dict_in_generate=True,
    )
    given = {} if cache is None else {CACHE: cache}
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **given)


def same_logits(one: Any, other: Any) -> bool:
    """Whether two greedy continuations have the same logits, up to the first token in which they differ."""
    for step, (first, second) in enumerate(zip(one.logits, other.logits, strict=False), 1):
        difference = (first.float() - second.float()).abs() / (second.float().std() + 1e-6)
        # Rounding, and the little that a few tokens of state change in the logits of a small model. Single logits in
        # bfloat16 lie a rounding apart.
        if bool(difference.max() > 1e-3 if first.dtype == torch.float32 else difference.mean() > 0.05):
            return False
        if not torch.equal(*(output.sequences[:, -len(output.logits) :][:, :step] for output in (one, other))):
            break  # a tie; later logits are those of other texts
    return True
