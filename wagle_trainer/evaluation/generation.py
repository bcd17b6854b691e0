"""What a model answers: greedy decoding of many prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tqdm.auto import tqdm
from transformers import GenerationConfig

from wagle_trainer.engines import shards_forward
from wagle_trainer.evaluation.batching import batches_by_length, pad
from wagle_trainer.evaluation.mode import evaluation_mode
from wagle_trainer.evaluation.processes import bring_together, deal_out, shows_progress


def generate_greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
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
        batch_size: prompts per batch.
        across_processes: deal the batches out over accelerate's processes. All have to call this with the same
            arguments; all get all texts.
        progress: show a progress bar.

    Returns:
        The continuations, without the prompts, special tokens and surrounding white space, in the order of `prompts`.
    """
    stop = _stop_tokens(model, tokenizer)
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0] if stop else 0
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        # What is unset here comes from the model's config, where values for sampling would only raise warnings.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        use_cache=True,  # a model that trains with gradient checkpointing has it off
        max_new_tokens=max_new_tokens,
        eos_token_id=stop or None,
        pad_token_id=filler,
    )
    device = next(model.parameters()).device
    texts: dict[int, str] = {}
    batches = deal_out(batches_by_length([len(prompt) for prompt in prompts], batch_size), across_processes)
    with (
        evaluation_mode(model),
        _without_max_length(model.generation_config),
        _weights_of_the_root(model),
        tqdm(
            total=sum(map(len, batches)),
            desc="Generating answers",
            unit="answer",
            disable=not shows_progress(progress, across_processes),
        ) as bar,
    ):
        for batch in batches:
            rows = [prompts[index] for index in batch]
            input_ids = pad(rows, filler, "left").to(device)
            attention_mask = pad([[1] * len(row) for row in rows], 0, "left").to(device)
            output = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                # Where weights are gathered from other processes, one whose answers have ended goes on with them.
                synced_gpus=shards_forward(),
            )
            for index, tokens in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
                # What follows the end is filler, which need not be a special token that decoding would drop.
                end = next((position for position, token in enumerate(tokens) if token in stop), len(tokens))
                texts[index] = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
            bar.update(len(batch))
    texts = bring_together(texts, across_processes)
    return [texts[index] for index in range(len(prompts))]


def _stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """End-of-sequence tokens of the tokenizer and of the model: chat models end a turn with a token of their own."""
    of_model = model.generation_config.eos_token_id
    candidates = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return sorted({token for token in candidates if token is not None})


def _weights_of_the_root(model: Any) -> AbstractContextManager[None]:
    """Gather what FSDP1 gathers in the forward pass of the whole model, which `generate` passes by; no-op elsewhere."""
    if not shards_forward():
        return nullcontext()
    from torch.distributed.fsdp import FullyShardedDataParallel

    if not isinstance(model, FullyShardedDataParallel):
        return nullcontext()
    return FullyShardedDataParallel.summon_full_params(model, writeback=False, recurse=False)


@contextmanager
def _without_max_length(config: GenerationConfig) -> Iterator[None]:
    """Lift the model's own `max_length`: next to `max_new_tokens`, `generate` warns of it at every batch."""
    max_length, config.max_length = config.max_length, None
    try:
        yield
    finally:
        config.max_length = max_length
