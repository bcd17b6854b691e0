"""How likely a model finds given answers: one teacher-forced pass for every metric that needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from tqdm.auto import tqdm

from wagle_trainer.evaluation.batching import batches_by_length, pad
from wagle_trainer.evaluation.metrics import extraction_strength
from wagle_trainer.evaluation.mode import evaluation_mode
from wagle_trainer.likelihood import IGNORE_INDEX, token_log_probs


@dataclass(frozen=True)
class AnswerScore:
    """What one teacher-forced pass tells about one answer.

    Attributes:
        mean_log_prob: mean log-probability per label token, the end-of-sequence token included; in nats.
        num_tokens: label tokens, the end-of-sequence token included.
        extraction_strength: of the answer without its end-of-sequence token, in [0, 1].
    """

    mean_log_prob: float
    num_tokens: int
    extraction_strength: float


def score_answers(
    model: nn.Module,
    examples: Sequence[Mapping[str, Sequence[int]]],
    names: Sequence[str],
    *,
    eos_token_id: int | None,
    batch_size: int = 32,
    progress: bool = True,
) -> list[AnswerScore]:
    """Score question-answer pairs, in right-padded batches of similar length.

    Args:
        model: a causal language model; it runs in eval mode and is left in the mode it was in.
        examples: tokens of question and answer, `input_ids` and `labels` of equal length (-100 on the question), as
            `QAFormat.encode` gives them.
        names: what to call each example in an error, such as "forget, row 3".
        eos_token_id: the token that ends an answer; extraction strength leaves out the last one among the labels and
            what a chat template puts after it. None: the answer is all of its labels.
        batch_size: examples per forward pass.
        progress: show a progress bar.

    Returns:
        The scores, in the order of `examples`.

    Raises:
        ValueError: an answer has no tokens.
        FloatingPointError: a log-probability is infinite or not a number.
    """
    lengths = [_answer_length(example["labels"], eos_token_id) for example in examples]
    for length, name in zip(lengths, names, strict=True):
        if length == 0:
            raise ValueError(f"{name}: the answer has no tokens.")
    device = next(model.parameters()).device
    scores: dict[int, AnswerScore] = {}
    batches = batches_by_length([len(example["input_ids"]) for example in examples], batch_size)
    with (
        evaluation_mode(model),
        tqdm(total=len(examples), desc="Scoring answers", unit="answer", disable=not progress) as bar,
    ):
        for batch in batches:
            rows = [examples[index] for index in batch]
            result = token_log_probs(
                model,
                {
                    "input_ids": pad([row["input_ids"] for row in rows], 0, "right").to(device),
                    "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0, "right").to(device),
                    "labels": pad([row["labels"] for row in rows], IGNORE_INDEX, "right").to(device),
                },
                top1=True,
            )
            assert result.is_top1 is not None  # asked for above
            means, counts = result.mean().tolist(), result.num_tokens().tolist()
            for index, mean, count, top1, mask in zip(
                batch, means, counts, result.is_top1.cpu(), result.mask.cpu(), strict=True
            ):
                if not math.isfinite(mean):
                    raise FloatingPointError(f"{names[index]}: the log-probability of the answer is {mean}.")
                scores[index] = AnswerScore(mean, count, extraction_strength(top1[mask][: lengths[index]]))
            bar.update(len(batch))
    return [scores[index] for index in range(len(examples))]


def _answer_length(labels: Sequence[int], eos_token_id: int | None) -> int:
    """Label tokens before the last end-of-sequence token."""
    tokens = [label for label in labels if label != IGNORE_INDEX]
    return max((index for index, token in enumerate(tokens) if token == eos_token_id), default=len(tokens))
