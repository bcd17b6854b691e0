"""Intervals for a single run, from resampling its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wagle_trainer.evaluation.tofu_metrics import UTILITY
from wagle_trainer.reporting.statistics import LEVEL, Interval

Floats = NDArray[np.float64]
_RESAMPLES = 2000
_BATCH = 100  # resamples at a time: it bounds the memory


def _as_is(values: Floats) -> Floats:
    return values


def _closer_to_1_better(log_ratios: Floats) -> Floats:
    return np.exp(-np.abs(log_ratios))  # min(r, 1 / r)


def _true_better(log_ratios: Floats) -> Floats:
    return -np.expm1(np.minimum(log_ratios, 0))  # max(0, 1 - r)


class _Mean(NamedTuple):
    """A metric that is the mean over examples of one function of one column."""

    set: str
    column: str
    function: Callable[[Floats], Floats] = _as_is


# What the suites' metrics are means of. Others have no interval over examples.
_MEANS = {
    # TOFU
    "forget_Q_A_Prob": _Mean("forget", "probability"),
    "forget_Q_A_ROUGE": _Mean("forget", "rouge_l_recall"),
    "forget_truth_ratio": _Mean("forget", "log_truth_ratio", _closer_to_1_better),
    "extraction_strength": _Mean("forget", "extraction_strength"),
    "exact_memorization": _Mean("forget", "exact_memorization"),
    "retain_Q_A_Prob": _Mean("retain", "probability"),
    "retain_Q_A_ROUGE": _Mean("retain", "rouge_l_recall"),
    "retain_Truth_Ratio": _Mean("retain", "log_truth_ratio", _true_better),
    "retain_extraction_strength": _Mean("retain", "extraction_strength"),
    "retain_exact_memorization": _Mean("retain", "exact_memorization"),
    "ra_Q_A_Prob_normalised": _Mean("real_authors", "probability"),
    "ra_Q_A_ROUGE": _Mean("real_authors", "rouge_l_recall"),
    "ra_Truth_Ratio": _Mean("real_authors", "log_truth_ratio", _true_better),
    "wf_Q_A_Prob_normalised": _Mean("world_facts", "probability"),
    "wf_Q_A_ROUGE": _Mean("world_facts", "rouge_l_recall"),
    "wf_Truth_Ratio": _Mean("world_facts", "log_truth_ratio", _true_better),
    # MUSE
    "forget_verbmem_ROUGE": _Mean("verbmem_forget", "rouge_l_f1"),
    "forget_knowmem_ROUGE": _Mean("knowmem_forget", "rouge_l_f1"),
    "retain_knowmem_ROUGE": _Mean("knowmem_retain", "rouge_l_f1"),
    # copyright
    "seen_ROUGE": _Mean("seen", "rouge_l_recall"),
    "unseen_ROUGE": _Mean("unseen", "rouge_l_recall"),
    # detoxification
    "toxicity": _Mean("prompts", "toxicity"),
}


def example_interval(result: Mapping[str, Any], metric: str, seed: int = 0) -> Interval:
    """A metric of one evaluation with its 95 % percentile bootstrap interval over examples.

    Examples are drawn anew within each set, all columns of an example together. It says how far the number depends on
    which questions were asked, not how far it depends on the training seed.

    Args:
        result: what an evaluation returned.
        metric: one of its numbers. Without `per_example` columns that it is known to be a mean of, and with fewer than
            two examples, there is no interval.
        seed: of the resampling.

    Raises:
        ValueError: the metric is not what its examples say: the result was altered.
    """
    value = float(result[metric])
    names = UTILITY if metric == "model_utility" else [metric]
    parts = [_MEANS[name] for name in names if name in _MEANS]
    examples = result.get("per_example", {})
    if not parts or any(part.column not in examples.get(part.set, {}) for part in parts):
        return Interval(value)
    columns = {
        name: np.stack([p.function(np.asarray(examples[name][p.column], float)) for p in parts if p.set == name])
        for name in dict.fromkeys(part.set for part in parts)
    }

    def statistic(*rows: NDArray[np.int64], axis: int = -1) -> Floats:
        means = np.concatenate([c[:, r].mean(axis) for c, r in zip(columns.values(), rows, strict=True)])
        if len(means) == 1:
            return means[0]
        with np.errstate(divide="ignore"):  # zero as soon as one of them is
            return stats.hmean(means, axis=0)

    sizes = [column.shape[1] for column in columns.values()]
    found = float(statistic(*(np.arange(size) for size in sizes)))
    if not np.isclose(found, value, rtol=1e-5, atol=1e-9):
        raise ValueError(
            f"{metric} is {value}, but its examples say {found}: the result was altered, or comes from a version that "
            "defined it otherwise."
        )
    if min(sizes) < 2:
        return Interval(value)
    interval = stats.bootstrap(
        [np.arange(size) for size in sizes],
        statistic,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(interval.low), float(interval.high))
