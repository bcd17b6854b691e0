"""Membership inference on questions and answers: OpenUnlearning's six attacks (arXiv 2506.12618)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm

from wagle_trainer.engines.engine import current_engine
from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.answer_scores import AnswerScore, answer_lengths
from wagle_trainer.evaluation.processes import gather_results, shard_batches, shows_progress
from wagle_trainer.models.log_probs import token_log_probs
from wagle_trainer.models.modes import evaluation_mode

SHARE = 0.4  # of the tokens that min-k and min-k++ look at: OpenUnlearning's on TOFU


def membership_scores(
    scores: Sequence[AnswerScore], texts: Sequence[str], *, k: float = SHARE
) -> dict[str, list[float]]:
    """What the attacks that need no further pass say of each example; the lower, the likelier it was trained on.

    Args:
        scores: from `score_answers` with `tokens` and `vocabulary`.
        texts: the answers that were scored.
        k: share of the tokens that min-k and min-k++ look at.

    Returns:
        mia_loss (mean negative log-likelihood, in nats), mia_zlib (that over the compressed bytes of the text),
        mia_min_k and mia_min_k_plus_plus, each with one number per example.
    """
    found: dict[str, list[float]] = {name: [] for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")}
    for score, text in zip(scores, texts, strict=True):
        if score.token_log_probs is None or score.vocabulary_mean is None or score.vocabulary_std is None:
            raise ValueError("Membership inference needs scores with tokens=True and vocabulary=True.")
        found["mia_loss"].append(-score.mean_log_prob)
        found["mia_zlib"].append(metrics.zlib_score(-score.mean_log_prob, text))
        found["mia_min_k"].append(metrics.min_k(score.token_log_probs, k))
        found["mia_min_k_plus_plus"].append(
            metrics.min_k_plus_plus(score.token_log_probs, score.vocabulary_mean, score.vocabulary_std, k)
        )
    return found


def gradient_norms(
    model: nn.Module,
    examples: Sequence[Mapping[str, Sequence[int]]],
    names: Sequence[str],
    *,
    eos_token_id: int | None,
    across_processes: bool = False,
    progress: bool = True,
) -> list[float]:
    """The gradient-norm attack: mean over the trainable tensors of the L2 norm of an example's gradient.

    The gradient is that of the mean negative log-likelihood of the answer's tokens without the end-of-sequence token
    (Wang et al. 2024, arXiv 2402.17012, as OpenUnlearning computes it). One forward and one backward pass per example;
    gradients that the model holds are neither used nor changed.

    Args:
        model, examples, names, eos_token_id, across_processes, progress: as for `score_answers`.

    Raises:
        ValueError: no weight is trainable; an answer has no tokens; or the engine shards the weights (FSDP, ZeRO-3).
        FloatingPointError: a norm is infinite or not a number.
    """
    if current_engine().gathers_weights_in_forward:
        raise ValueError(
            "The gradient-norm attack needs the whole gradient of one example, which no process holds on FSDP or "
            "ZeRO-3: leave it out there, or evaluate on one GPU or with DDP."
        )
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ValueError("The gradient-norm attack needs trainable weights: no parameter of the model requires_grad.")
    lengths = answer_lengths(examples, names, eos_token_id)
    found: dict[int, float] = {}
    mine = shard_batches(sorted(range(len(examples)), key=lambda index: -lengths[index]), across_processes)
    with (
        evaluation_mode(model),
        torch.enable_grad(),
        tqdm(
            total=len(mine), desc="Gradients", unit="answer", disable=not shows_progress(progress, across_processes)
        ) as bar,
    ):
        for index in mine:
            batch = {key: torch.tensor([list(values)]) for key, values in examples[index].items()}
            result = token_log_probs(model, {key: values.to(weights[0].device) for key, values in batch.items()})
            loss = -result.log_probs[result.mask][: lengths[index]].mean()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
            found[index] = torch.stack(norms).mean().item()
            bar.update()
    found = gather_results(found, across_processes)
    for index, name in enumerate(names):
        if not torch.tensor(found[index]).isfinite():
            raise FloatingPointError(f"{name}: the norm of the gradient is {found[index]}.")
    return [found[index] for index in range(len(examples))]
