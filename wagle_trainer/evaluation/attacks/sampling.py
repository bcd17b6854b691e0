"""Attack by sampling: the best of many answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.attacks.attack import Point, Row, Target, register_attack
from wagle_trainer.evaluation.attacks.attack_options import check_positive
from wagle_trainer.evaluation.attacks.knowledge import forget_knowledge
from wagle_trainer.evaluation.generation import answer_limit, check_sampling, generate_samples
from wagle_trainer.evaluation.metrics.metric_checks import Floats


def _check(
    rows: Sequence[Row],
    *,
    k: Sequence[int],
    samples: int | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> None:
    if not k or min(k) < 1:
        raise ValueError(f"k must be whole numbers from 1 on, not {list(k)}.")
    if samples is not None and samples < max(k):
        raise ValueError(f"The best of k={max(k)} answers needs at least as many samples, not {samples}.")
    check_sampling(max(k), temperature, top_p)
    check_positive(max_new_tokens=max_new_tokens)


@register_attack("sampling", unit="answers sampled", check=_check)
def sampling(
    target: Target,
    *,
    k: Sequence[int] = (1, 2, 4, 8, 16),
    samples: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 200,
) -> list[Point]:
    """Sample k answers and count the best: leak@k (Reisizadeh et al. 2025, arXiv 2511.04934).

    The measure is the ROUGE-L recall of the best of k sampled answers, averaged over the questions. The baselines are the
    greedy answers of the reference model and of the unlearned model, so the recovery rate is what sampling finds beyond
    greedy decoding. By chance alone the best of many answers is better than one: compare the result with that of a
    retrained model.

    Args:
        target: the models and the measure.
        k: numbers of answers; the best of them counts.
        samples: answers drawn for each question, at least the largest k (which is the default); more make the estimate
            of the smaller k better.
        temperature, top_p: of the sampling; the paper takes 1 and 1 among others.
        max_new_tokens: an answer ends after so many tokens, or after three times the longest true answer if that is less.

    Returns:
        One point per entry of `k`, in rising order; never falling.

    Raises:
        ValueError: a k below 1 or above `samples`; a temperature or `top_p` out of range.
    """
    _check(target.rows, k=k, samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    ks = sorted(set(k))
    samples = ks[-1] if samples is None else samples
    labels = [target.qa.encode(row["question"], row["answer"])["labels"] for row in target.rows]
    texts = generate_samples(
        target.after,
        target.tokenizer,
        [target.qa.prompt_ids(row["question"]) for row in target.rows],
        num_samples=samples,
        max_new_tokens=answer_limit(labels, max_new_tokens),
        temperature=temperature,
        top_p=top_p,
        seed=target.seed,
        batch_size=target.batch_size,
        progress=target.progress,
    )
    before, after = (
        forget_knowledge(
            model,
            target.tokenizer,
            target.rows,
            only=("rouge_l_recall",),
            qa_format=target.qa,
            batch_size=target.batch_size,
            max_new_tokens=max_new_tokens,
        )
        for model in (target.before, target.after)
    )
    answers = [row["answer"] for row in target.rows]
    scores = np.stack([metrics.rouge_l_recall(draws, answers) for draws in zip(*texts, strict=True)], axis=-1)
    return [Point(size, {"rouge_l_recall": float(leak_at_k(scores, size).mean())}, before, after) for size in ks]


def leak_at_k(scores: ArrayLike, k: int) -> Floats:
    """Expected best score of k samples, from n >= k samples: the mean of the maximum over all sets of k of the n.

    The i-th smallest of the n scores is the best of C(i - 1, k - 1) of the C(n, k) sets: unbiased, and with less variance
    than the maximum of the first k (arXiv 2511.04934; for correct or not, this is pass@k of arXiv 2107.03374).

    Args:
        scores: (..., n).
        k: from 1 to n.

    Returns:
        (...,), never falling as k rises.

    Raises:
        ValueError: k is out of range.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    n = ordered.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the number of samples, {n}; not {k}.")
    rank = np.arange(k, n + 1)  # the smaller ones are never the best of k
    log_weight = _log_choose(rank - 1, k - 1) - _log_choose(np.array(n), k)
    return (ordered[..., k - 1 :] * np.exp(log_weight)).sum(-1)


def _log_choose(n: Floats, k: int) -> Floats:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
