"""Intervals for a single run, from resampling its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wagle_trainer.evaluation.metrics import perplexity, roc_auc
from wagle_trainer.evaluation.tofu_metrics import UTILITY
from wagle_trainer.reporting.statistics import LEVEL, Interval

Floats = NDArray[np.float64]
_RESAMPLES = 2000
_BATCH = 100  # resamples at a time: it bounds the memory


def _as_is(values: Floats, _: Any) -> Floats:
    return values


def _closer_to_1_better(log_ratios: Floats, _: Any) -> Floats:
    return np.exp(-np.abs(log_ratios))  # min(r, 1 / r)


def _true_better(log_ratios: Floats, _: Any) -> Floats:
    return -np.expm1(np.minimum(log_ratios, 0))  # max(0, 1 - r)


class _Mean(NamedTuple):
    """The mean over a set's examples of one function of one column.

    Attributes:
        function: takes the column, and the value of `setting`.
        setting: of the result, such as a threshold.
        weight: of this mean, where a metric is the weighted sum of several.
    """

    set: str
    column: str
    function: Callable[[Floats, Any], Floats] = _as_is
    setting: str | None = None
    weight: float = 1.0


# What the suites' metrics are means of, or made of by `_made_of`. Others have no interval over examples.
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
    "seen_exact_match": _Mean("seen", "common_prefix", np.equal, "continuation_tokens"),
    "seen_common_prefix": _Mean("seen", "common_prefix", np.divide, "continuation_tokens"),
    "seen_perplexity": _Mean("seen", "answer_log_prob"),
    "unseen_ROUGE": _Mean("unseen", "rouge_l_recall"),
    "unseen_exact_match": _Mean("unseen", "common_prefix", np.equal, "continuation_tokens"),
    "unseen_common_prefix": _Mean("unseen", "common_prefix", np.divide, "continuation_tokens"),
    "unseen_perplexity": _Mean("unseen", "answer_log_prob"),
    # detoxification
    "toxicity": _Mean("prompts", "toxicity"),
    "toxicity_ratio": _Mean("prompts", "toxicity", np.greater_equal, "threshold"),
}


def _parts(metric: str, settings: Mapping[str, Any]) -> list[_Mean]:
    """The means that a metric is made of; none if they are not known."""
    if metric == "model_utility":
        return [_MEANS[name] for name in UTILITY]
    if metric in _MEANS:
        return [_MEANS[metric]]
    # WMDP: of a task, of a group of tasks, or the mean over those that were asked for
    sides = {f"{side}_accuracy": settings.get(side, []) for side in ("forget", "retain")}
    asked = sides.get(metric, [metric.removesuffix("_acc")])
    tasks = settings.get("weights", {})
    return [_Mean(task, "acc", weight=w / len(asked)) for name in asked for task, w in tasks.get(name, {}).items()]


def _made_of(metric: str, parts: list[_Mean], means: Floats) -> Floats:
    """The metric from its means: (parts, ...) -> (...)."""
    if metric == "model_utility":
        with np.errstate(divide="ignore"):  # zero as soon as one of them is
            return stats.hmean(means, axis=0)
    if metric.endswith("_perplexity"):
        return perplexity(means[0])
    return np.tensordot([part.weight for part in parts], means, 1)


# Rows drawn from each set, with axis=-1 if many draws at a time are understood -> the metric.
_Statistic = Callable[..., Any]


def _statistic(metric: str, result: Mapping[str, Any]) -> tuple[list[int], _Statistic] | None:
    """Sizes of the sets that a metric is of, and the metric of rows drawn from them; None where it is not known."""
    examples, settings = result.get("per_example", {}), result.get("settings", {})
    if metric.startswith("mia_"):
        return _auc(metric, examples, settings)
    parts = _parts(metric, settings)
    known = all(p.column in examples.get(p.set, {}) and (p.setting is None or p.setting in settings) for p in parts)
    if not parts or not known:
        return None
    columns = [p.function(np.asarray(examples[p.set][p.column], float), settings.get(p.setting)) for p in parts]
    sizes = {name: min(len(c) for p, c in zip(parts, columns, strict=True) if p.set == name) for name, *_ in parts}

    def of_rows(*rows: NDArray[np.int64], axis: int = -1) -> Floats:
        drawn = dict(zip(sizes, rows, strict=True))
        means = [column[drawn[part.set]].mean(axis) for part, column in zip(parts, columns, strict=True)]
        return _made_of(metric, parts, np.stack(means))

    return list(sizes.values()), of_rows


def _auc(metric: str, examples: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[list[int], _Statistic] | None:
    """As `_statistic`, of an attack of TOFU's or MUSE's: its members and its non-members are drawn."""
    members, others = (examples.get(name, {}).get(metric) for name in ("forget", str(settings.get("non_members"))))
    if metric == "mia_min_k" and members is None:
        members, others = (examples.get(f"privleak_{name}", {}).get("min_k") for name in ("forget", "holdout"))
    if members is None or others is None:
        return None
    inside, outside = np.asarray(members, float), np.asarray(others, float)
    return [inside.size, outside.size], lambda one, other: roc_auc(inside[one], outside[other])


def example_interval(result: Mapping[str, Any], metric: str, seed: int = 0) -> Interval:
    """A metric of one evaluation with its 95 % percentile bootstrap interval over examples.

    Examples are drawn anew within each set, all columns of an example together. It says how far the number depends on
    which questions were asked, not how far it depends on the training seed.

    Args:
        result: what an evaluation returned.
        metric: one of its numbers. Without `per_example` columns that it is known to be made of, and with fewer than
            two examples, there is no interval.
        seed: of the resampling.

    Raises:
        ValueError: the metric is not what its examples say: the result was altered.
    """
    value = float(result[metric])
    known = _statistic(metric, result)
    if known is None:
        return Interval(value)
    sizes, statistic = known
    everything = [np.arange(size) for size in sizes]
    found = float(statistic(*everything))
    if not np.isclose(found, value, rtol=1e-5, atol=1e-9):
        raise ValueError(
            f"{metric} is {value}, but its examples say {found}: the result was altered, or comes from a version that "
            "defined it otherwise."
        )
    if min(sizes) < 2:
        return Interval(value)
    with np.errstate(over="ignore"):  # perplexities have a standard error that does not fit; it is not used
        interval = stats.bootstrap(
            everything,
            statistic,
            n_resamples=_RESAMPLES,
            batch=_BATCH,
            confidence_level=LEVEL,
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(value, float(interval.low), float(interval.high))
