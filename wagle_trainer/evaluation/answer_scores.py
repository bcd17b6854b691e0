"""How likely a model finds given answers: one teacher-forced pass for every metric that needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from tqdm.auto import tqdm

from wagle_trainer.evaluation.answer_trees import TreeLogProbs, tree_log_probs
from wagle_trainer.evaluation.kept_prompts import KeptPrompts
from wagle_trainer.evaluation.metrics import extraction_strength
from wagle_trainer.evaluation.padded_batches import batches_by_length, pad
from wagle_trainer.evaluation.processes import gather_results, shard_batches, shows_progress
from wagle_trainer.evaluation.prompt_states import common_states, prompt_length
from wagle_trainer.evaluation.shared_prompts import (
    attention_window,
    can_branch,
    can_share,
    shared_batches,
    shared_log_probs,
)
from wagle_trainer.models.causality import check_causal_once
from wagle_trainer.models.log_probs import IGNORE_INDEX, TokenLogProbs, token_log_probs
from wagle_trainer.models.modes import evaluation_mode


@dataclass(frozen=True)
class AnswerScore:
    """What one teacher-forced pass tells about one answer.

    Attributes:
        mean_log_prob: mean log-probability per target token, the end-of-sequence token included; in nats.
        num_tokens: target tokens, the end-of-sequence token included.
        extraction_strength: of the answer without its end-of-sequence token, in [0, 1].
        is_top1: for each token of the answer without its end-of-sequence token, whether it is the most likely one; what
            `exact_memorization` takes.
        token_log_probs: log-probability of each of these tokens, in nats; what `min_k` takes. None if not requested.
        vocabulary_mean, vocabulary_std: mean and standard deviation of the log-probability of the token at each of
            these positions, if it were drawn from the model; what `min_k_plus_plus` takes. None if not requested.
        num_greedy: target tokens before the first that is not the most likely one; greedy decoding begins with them.
    """

    mean_log_prob: float
    num_tokens: int
    extraction_strength: float
    is_top1: list[bool] | None = None
    token_log_probs: list[float] | None = None
    vocabulary_mean: list[float] | None = None
    vocabulary_std: list[float] | None = None
    num_greedy: int | None = None


def score_answers(
    model: nn.Module,
    examples: Sequence[Mapping[str, Sequence[int]]],
    names: Sequence[str],
    *,
    eos_token_id: int | Literal["last"] | None,
    masked_token: int | None = None,
    batch_size: int = 32,
    tokens: bool = False,
    vocabulary: bool | Sequence[bool] = False,
    kept: KeptPrompts | None = None,
    across_processes: bool = False,
    progress: bool = True,
) -> list[AnswerScore]:
    """Score question-answer pairs, in right-padded batches of similar length.

    Where many answers follow one prompt, its keys and values are computed once, if the model allows it (`can_share`)
    and it saves enough tokens: scores are equal up to rounding.

    Args:
        model: a causal language model; it runs in eval mode and is left in the mode it was in.
        examples: tokens of question and answer, `input_ids` and `labels` of equal length (-100 on the question), as
            `QAFormat.encode` gives them.
        names: what to call each example in an error, such as "forget, row 3".
        eos_token_id: the token that ends an answer; extraction strength leaves out the last one among the labels and
            what a chat template puts after it. None: the answer is all of its labels; "last": all but the last label.
        masked_token: a token that is not attended to wherever it stands; None for none.
        batch_size: examples per forward pass.
        tokens: also keep `is_top1` and `token_log_probs`.
        vocabulary: also keep `vocabulary_mean` and `vocabulary_std`; a bool, or one for each example.
        kept: keeps what is computed of prompts, for `generate_greedy`.
        across_processes: shard the batches over accelerate's processes. All have to call this with the same
            arguments; all get all scores.
        progress: show a progress bar.

    Returns:
        The scores, in the order of `examples`.

    Raises:
        ValueError: an answer has no tokens, or the model is not causal.
        FloatingPointError: a log-probability is infinite or not a number.
    """
    check_causal_once(model)
    lengths = answer_lengths(examples, names, eos_token_id)
    wanted = [vocabulary] * len(examples) if isinstance(vocabulary, bool) else list(vocabulary)
    scores: dict[int, AnswerScore] = {}
    with evaluation_mode(model):
        runs = [
            (run, batch)
            for run, batches in _passes(model, examples, batch_size, masked_token, kept)
            for batch in shard_batches(batches, across_processes)
        ]
        with tqdm(
            total=sum(len(batch) for _, batch in runs),
            desc="Scoring answers",
            unit="answer",
            disable=not shows_progress(progress, across_processes),
        ) as bar:
            for run, batch in runs:
                result = run(
                    [examples[index] for index in batch], top1=True, keep_logits=any(wanted[index] for index in batch)
                )
                found = _scores(result, [lengths[i] for i in batch], tokens, [wanted[i] for i in batch])
                scores |= zip(batch, found, strict=True)
                bar.update(len(batch))
    # Only now, on all processes alike: one that stopped earlier would leave the others waiting for it.
    scores = gather_results(scores, across_processes)
    for index, name in enumerate(names):
        if not math.isfinite(scores[index].mean_log_prob):
            raise FloatingPointError(f"{name}: the log-probability of the answer is {scores[index].mean_log_prob}.")
    return [scores[index] for index in range(len(examples))]


# Scores rows of tokens in one batch, with the options of `token_log_probs`.
_Pass = Callable[..., TokenLogProbs]


def _passes(
    model: nn.Module,
    examples: Sequence[Mapping[str, Sequence[int]]],
    batch_size: int,
    masked_token: int | None,
    kept: KeptPrompts | None,
) -> list[tuple[_Pass, list[list[int]]]]:
    """The batches, by how they run. All of one kind run as many forward passes, so that processes stay synchronised."""
    # A masked token has a place of its own in some models and not in others: prompts with one are not cut.
    run, shared, rest = _shared(model, examples, batch_size if masked_token is None else 1)
    lengths = [len(examples[index]["input_ids"]) for index in rest]
    plain = [[rest[position] for position in batch] for batch in batches_by_length(lengths, batch_size)]
    forward = model if masked_token is None else _WithoutToken(model, masked_token)
    runs: list[tuple[_Pass, list[list[int]]]] = [(partial(_padded_log_probs, forward), plain)]
    if shared:
        rows = [examples[index] for batch in shared for index in batch]
        prompts = {tuple(row["input_ids"][: prompt_length(row)]): None for row in rows}
        options = {"kept": kept} if run is tree_log_probs else {}
        runs.insert(0, (partial(run, model, common=common_states(model, list(prompts)), **options), shared))
    return runs


def _shared(
    model: nn.Module, examples: Sequence[Mapping[str, Sequence[int]]], batch_size: int
) -> tuple[_Pass, list[list[int]], list[int]]:
    """How answers share their prompts, the batches of those that do, and the others."""
    if batch_size > 1:
        for run, can, trees in ((tree_log_probs, can_branch, True), (shared_log_probs, can_share, False)):
            batches, rest = shared_batches(examples, batch_size, trees=trees)
            if not batches or not can(model):
                continue
            window = attention_window(model)
            if window < math.inf:
                batches, rest = shared_batches(examples, batch_size, trees=trees, window=window)
            if batches:
                return run, batches, rest
    return tree_log_probs, [], list(range(len(examples)))


def _padded_log_probs(model: nn.Module, rows: Sequence[Mapping[str, Sequence[int]]], **options: Any) -> TokenLogProbs:
    """Log-probabilities of answers behind their prompts, padded on the right."""
    device = next(model.parameters()).device
    batch = {
        "input_ids": pad([row["input_ids"] for row in rows], 0, "right").to(device),
        "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0, "right").to(device),
        "labels": pad([row["labels"] for row in rows], IGNORE_INDEX, "right").to(device),
    }
    return token_log_probs(model, batch, **options)


def _scores(
    result: TokenLogProbs, lengths: Sequence[int], tokens: bool, vocabulary: Sequence[bool]
) -> list[AnswerScore]:
    """The scores of a batch.

    Args:
        result: log-probabilities, with `is_top1`, and with `logits` if there is any `vocabulary`.
        lengths: tokens of each answer without its end-of-sequence token.
        tokens: keep those per token.
        vocabulary: of each example, whether to keep its moments.
    """
    assert result.is_top1 is not None  # requested above
    means, counts = result.mean().tolist(), result.num_tokens().tolist()
    mask, top1s, log_probs = result.mask.cpu(), result.is_top1.cpu(), result.log_probs.cpu()
    scores = []
    for position, length in enumerate(lengths):
        kept = mask[position]
        top1 = top1s[position][kept]
        details: dict[str, Any] = {"num_greedy": int(top1.cumprod(0).sum())}
        if tokens:
            details["is_top1"] = top1[:length].tolist()
            details["token_log_probs"] = log_probs[position][kept][:length].tolist()
        if vocabulary[position]:
            mean, std = _vocabulary_moments(_logits_of(result, position))
            details |= {"vocabulary_mean": mean[:length].tolist(), "vocabulary_std": std[:length].tolist()}
        scores.append(AnswerScore(means[position], counts[position], extraction_strength(top1[:length]), **details))
    return scores


class _WithoutToken(nn.Module):
    """A model that does not attend to a token, wherever it stands; its labels count all the same."""

    def __init__(self, module: nn.Module, token: int):
        super().__init__()
        self.module, self.token = module, token

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
        return self.module(input_ids=input_ids, attention_mask=attention_mask * (input_ids != self.token), **inputs)


def _logits_of(result: TokenLogProbs, example: int) -> Tensor:
    """float32 logits that predict the target tokens of one example, (target tokens, vocabulary)."""
    if isinstance(result, TreeLogProbs):
        return result.logits_of(example)
    assert result.logits is not None and result.kept is not None  # requested
    return result.logits[example][result.mask[example, result.kept]].float()


def _vocabulary_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the log-probability of a token drawn from the model.

    For one example at a time: the float32 distributions of a whole batch would take several times its logits.
    """
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    log_probs = log_probs.masked_fill(probs == 0, 0)  # 0 * log 0 = 0, which floats do not know
    mean = (probs * log_probs).sum(-1, keepdim=True)
    std = (probs * (log_probs - mean).square()).sum(-1).sqrt()
    return mean.squeeze(-1).cpu(), std.cpu()


def answer_lengths(
    examples: Sequence[Mapping[str, Sequence[int]]], names: Sequence[str], eos_token_id: int | Literal["last"] | None
) -> list[int]:
    """Number of target tokens of each example before its last end-of-sequence token, or before its last one.

    Raises:
        ValueError: an answer has none; the message has its name.
    """
    lengths = []
    for example, name in zip(examples, names, strict=True):
        tokens = [label for label in example["labels"] if label != IGNORE_INDEX]
        if eos_token_id == "last":
            length = len(tokens) - 1
        else:
            length = max((index for index, token in enumerate(tokens) if token == eos_token_id), default=len(tokens))
        if length < 1:
            raise ValueError(f"{name}: the answer has no tokens.")
        lengths.append(length)
    return lengths


def greedy_beginnings(
    examples: Sequence[Mapping[str, Sequence[int]]], scores: Sequence[AnswerScore]
) -> dict[tuple[int, ...], list[int]]:
    """Prompt -> tokens that its greedy continuation begins with, as far as scored answers tell.

    Greedy decoding takes the most likely token each time: it repeats an answer up to the first token that is not.

    Args:
        examples, scores: what `score_answers` took without a masked token, and what it gave.
    """
    known: dict[tuple[int, ...], list[int]] = {}
    for example, score in zip(examples, scores, strict=True):
        start = prompt_length(example)
        answer = list(example["labels"][start : start + (score.num_greedy or 0)])
        prompt = tuple(example["input_ids"][:start])
        if len(answer) > len(known.get(prompt, ())) and IGNORE_INDEX not in answer:
            known[prompt] = answer
    return known
