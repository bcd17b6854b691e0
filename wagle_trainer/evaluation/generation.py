"""Greedy and sampled continuations of many prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import GenerationConfig

from wagle_trainer.engines.engine import current_engine
from wagle_trainer.evaluation.continuous_batches import generate_continuously
from wagle_trainer.evaluation.generation_starts import GenerationStarts, is_plain_greedy, same_logits
from wagle_trainer.evaluation.kept_prompts import KeptPrompts
from wagle_trainer.evaluation.padded_batches import batches_by_length
from wagle_trainer.evaluation.processes import gather_results, shard_batches, shows_progress
from wagle_trainer.evaluation.shrinking_batches import CACHE, CHUNK, can_shrink, generate_shrinking
from wagle_trainer.models.architecture import (
    refuse_encoder_decoder,
    stands_left_padding,
    text_config,
    unwrap,
)
from wagle_trainer.models.log_probs import IGNORE_INDEX
from wagle_trainer.models.modes import evaluation_mode, preserved_rng


def generate_greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[str] = (),
    masked_token: int | None = None,
    known: Mapping[tuple[int, ...], Sequence[int]] | None = None,
    kept: KeptPrompts | None = None,
    batch_size: int = 32,
    across_processes: bool = False,
    progress: bool = True,
) -> list[str]:
    """Continue prompts with the most likely token until an end-of-sequence token, in left-padded batches.

    Settings of the model's own generation config that change what greedy decoding gives, such as a repetition
    penalty, hold here too, as they do in OpenUnlearning.

    Args:
        model: a Transformers or PEFT model with `generate`; it runs in eval mode and is left in the mode it was in.
        tokenizer: its tokenizer, for the special tokens and for decoding; its padding settings play no part.
        prompts: tokens of each prompt.
        max_new_tokens: tokens after which an answer is cut off.
        ends: texts that end an answer, too; one that begins with such a text is empty.
        masked_token: a token of the prompts that is not attended to; None for none.
        known: prompt -> tokens that its most likely continuation begins with, as `greedy_beginnings` finds them: they are
            read in one pass. Ignored with a masked token, and where settings of the model change greedy decoding.
        kept: states of prompts that `score_answers` kept of this model, which has not changed since then.
        batch_size: prompts that enter a batch in one forward pass. Up to 256 are continued at once, if free memory holds
            their keys and values: a step costs little more for many than for a few. With 1, and where a model or its
            settings do not allow prompts to enter a running batch, it is the size of the batch, too.
        across_processes: shard the batches over accelerate's processes. All have to call this with the same
            arguments; all get all texts.
        progress: show a progress bar.

    Returns:
        The continuations, without the prompts, special tokens and surrounding white space, in the order of `prompts`.

    Raises:
        ValueError: the model is an encoder-decoder.
    """
    # What is unset here comes from the model's config, where values for sampling would only raise warnings.
    settings = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    return _continue(
        model,
        tokenizer,
        prompts,
        settings,
        None,
        max_new_tokens,
        ends,
        batch_size,
        across_processes,
        progress,
        masked_token,
        known if masked_token is None and is_plain_greedy(model.generation_config) else None,
        kept if masked_token is None else None,
    )


def generate_samples(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 42,
    batch_size: int = 32,
    across_processes: bool = False,
    progress: bool = True,
) -> list[list[str]]:
    """Draw continuations of each prompt, as `generate_greedy` gives the most likely one.

    Args:
        model, tokenizer, prompts, max_new_tokens, across_processes, progress: as there.
        num_samples: continuations of each prompt.
        temperature: the logits are divided by it, > 0.
        top_p: only the likeliest tokens whose probabilities add up to it are drawn, in (0, 1].
        seed: of the draws. Each batch has its own, so the texts do not depend on the number of processes; on the batch
            size they do.
        batch_size: continuations per batch.

    Returns:
        `num_samples` continuations for each prompt, in the order of `prompts`.

    Raises:
        ValueError: no samples are requested, or the temperature or `top_p` is out of range.
    """
    check_sampling(num_samples, temperature, top_p)
    settings = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]
    with preserved_rng():
        texts = _continue(
            model, tokenizer, repeated, settings, seed, max_new_tokens, (), batch_size, across_processes, progress
        )
    return [texts[start : start + num_samples] for start in range(0, len(texts), num_samples)]


def check_sampling(num_samples: int, temperature: float, top_p: float) -> None:
    """Raise ValueError where one of these is out of range."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}.")
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"Sampling needs temperature > 0 and top_p in (0, 1], not {temperature} and {top_p}.")


def answer_limit(labels: Iterable[Sequence[int]], max_new_tokens: int) -> int:
    """`max_new_tokens`, or three times the tokens of the longest true answer if that is less.

    Three times TOFU's longest answer is more than OpenUnlearning's 200 tokens: there the limit is the same. On data with
    short answers, a model that unlearned where to stop does not cost 200 steps per batch.

    Args:
        labels: of each question with its answer, -100 on the question.
        max_new_tokens: the limit for long answers.
    """
    return min(max_new_tokens, 3 * max(sum(label != IGNORE_INDEX for label in row) for row in labels))


def _continue(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    seed: int | None,
    max_new_tokens: int,
    ends: Sequence[str],
    batch_size: int,
    across_processes: bool,
    progress: bool,
    masked_token: int | None = None,
    known: Mapping[tuple[int, ...], Sequence[int]] | None = None,
    kept: KeptPrompts | None = None,
) -> list[str]:
    """One continuation of each prompt, decoded as the `settings` of a `GenerationConfig` say."""
    refuse_encoder_decoder(model)
    stop = _stop_tokens(model, tokenizer)
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0] if stop else 0
    config = GenerationConfig(
        **settings,
        num_beams=1,
        use_cache=True,  # a model that trains with gradient checkpointing has it off
        max_new_tokens=max_new_tokens,
        eos_token_id=stop or None,
        pad_token_id=filler,
    )
    together = current_engine().gathers_weights_in_forward
    # Draws depend on the rows of a batch, so that samples are left as they are.
    shrinks = seed is None and max_new_tokens > CHUNK and bool(stop) and not together and can_shrink(model)
    begun = [_up_to(stop, (known or {}).get(tuple(prompt), ()))[:max_new_tokens] for prompt in prompts]
    texts = {
        index: _text(tokenizer, tokens, stop, ends)
        for index, tokens in enumerate(begun)
        if len(tokens) == max_new_tokens or (tokens and tokens[-1] in stop)
    }
    given = [[*prompt, *tokens] for prompt, tokens in zip(prompts, begun, strict=True)]
    open_rows = [index for index in range(len(prompts)) if index not in texts]
    # Some recurrent models read padding as text: their batches need none.
    recurrent = not stands_left_padding(model)
    equal = len({len(given[index]) for index in open_rows}) > 1 and batch_size > 1 and recurrent
    batches = shard_batches(
        [
            [open_rows[position] for position in batch]
            for batch in batches_by_length([len(given[index]) for index in open_rows], batch_size, equal=equal)
        ],
        across_processes,
    )
    with (
        evaluation_mode(model),
        _without_max_length(model.generation_config),
        current_engine().gathered_root(model),
        tqdm(
            total=sum(map(len, batches)),
            desc="Generating answers",
            unit="answer",
            disable=not shows_progress(progress, across_processes),
        ) as bar,
    ):
        config.use_cache = not recurrent or _cache_is_right(model, filler)
        shares = config.use_cache and masked_token is None and batch_size > 1
        starts = GenerationStarts(model, [given[index] for index in open_rows] if shares else [], filler, masked_token)
        if shares and shrinks and (len(batches) > 1 or kept is not None) and starts.can_refill():
            order = list(dict.fromkeys(index for batch in batches for index in batch))
            continued = generate_continuously(
                model,
                [given[index] for index in order],
                [max_new_tokens - len(begun[index]) for index in order],
                config,
                stop,
                batch_size=batch_size,
                common=starts.common,
                kept=kept,
                lengths=[len(prompts[index]) for index in order],
                ended=bar.update,
            )
            for index, tokens in zip(order, continued, strict=True):
                texts[index] = _text(tokenizer, [*begun[index], *tokens], stop, ends)
            batches = []
        for batch in batches:
            if seed is not None:
                torch.manual_seed(seed + batch[0])  # whichever process runs this batch
            rows = [given[index] for index in batch]
            input_ids, attention_mask, cache = starts.of(rows)
            config.max_new_tokens = max_new_tokens - min(len(begun[index]) for index in batch)
            if shrinks and config.use_cache and len(batch) > 1:
                output = generate_shrinking(model, input_ids, attention_mask, config, stop, cache)
            else:
                output = model.generate(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    generation_config=config,
                    # Where weights are gathered from other processes, one whose answers have ended goes on with them.
                    synced_gpus=together,
                    **({} if cache is None else {CACHE: cache}),
                )
            for index, tokens in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
                texts[index] = _text(tokenizer, [*begun[index], *tokens][:max_new_tokens], stop, ends)
            bar.update(len(batch))
    texts = gather_results(texts, across_processes)
    return [texts[index] for index in range(len(prompts))]


def _up_to(stop: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """`tokens` up to the first of `stop`, that included."""
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in stop), len(tokens)) + 1])


def _text(tokenizer: Any, tokens: Sequence[int], stop: Sequence[int], ends: Sequence[str]) -> str:
    """The text of an answer up to its end."""
    # What follows the end is filler, which need not be a special token that decoding would drop.
    end = next((position for position, token in enumerate(tokens) if token in stop), len(tokens))
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    for mark in ends:  # before white space goes, which may be such a mark
        text = text.partition(mark)[0]
    return text.strip()


_CACHE_IS_RIGHT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _cache_is_right(model: Any, filler: int) -> bool:
    """Whether a batch gets the same logits with a cache and without: not so in RWKV (Transformers 5.24), which mixes rows.

    Probed once per model; all processes call this together.
    """
    bare = unwrap(model)
    if bare not in _CACHE_IS_RIGHT:
        device = next(model.parameters()).device
        prompt = torch.arange(8, device=device).view(2, 4) % getattr(text_config(bare), "vocab_size", 16)
        outputs = []
        for use_cache in (True, False):
            config = GenerationConfig(
                do_sample=False,
                num_beams=1,
                use_cache=use_cache,
                max_new_tokens=3,
                pad_token_id=filler,
                output_logits=True,
                return_dict_in_generate=True,
            )
            with preserved_rng():
                outputs.append(
                    model.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        generation_config=config,
                        synced_gpus=current_engine().gathers_weights_in_forward,
                    )
                )
        _CACHE_IS_RIGHT[bare] = same_logits(*outputs)
    return _CACHE_IS_RIGHT[bare]


def _stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """End-of-sequence tokens of the tokenizer and of the model: chat models end a turn with a token of their own."""
    of_model = model.generation_config.eos_token_id
    candidates = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return sorted({token for token in candidates if token is not None})


@contextmanager
def _without_max_length(config: GenerationConfig) -> Iterator[None]:
    """Lift the model's own `max_length`: next to `max_new_tokens`, `generate` warns of it at every batch."""
    max_length, config.max_length = config.max_length, None
    try:
        yield
    finally:
        config.max_length = max_length
