"""Membership inference: can one tell which examples a model was trained on?

Scores have the sign of a loss, as in OpenUnlearning (arXiv 2506.12618): the lower, the likelier the example is a member
of the training set. `roc_auc` is 1 where every member scores below every non-member, and 0.5 where scores say nothing.
After forgetting, it should be what it is for a model that was never trained on the forget set: about 0.5.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import ANY, SHARE, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import Floats, same_length, vector

MIN_STD = 1e-3  # OpenUnlearning's floor of 1e-6 for the variance


@register_metric(
    "min_k",
    inputs={"predictions": ("numbers", "for each example the log-probability of each of its tokens, in nats")},
    each=True,
    range=(0, float("inf")),
    more_known="lower",
    source=citations.MIN_K,
)
def min_k(token_log_probs: ArrayLike, k: float = 0.2) -> float:
    """Minus the mean log-probability of the share `k` of an example's tokens that the model finds least likely.

    Min-K% Prob (Shi et al. 2023, arXiv 2310.16789) with the sign of a loss. OpenUnlearning takes k = 0.4 on TOFU.

    Args:
        token_log_probs: of each token, (tokens,), in nats.
        k: share in (0, 1]; max(1, floor(k * tokens)) tokens count.

    Raises:
        ValueError: `token_log_probs` is empty or not finite, or `k` is out of range.
    """
    return _mean_of_lowest(vector(token_log_probs, "token_log_probs"), k)


@register_metric(
    "min_k_plus_plus",
    inputs={
        "predictions": ("numbers", "for each example the log-probability of each of its tokens, in nats"),
        "means": ("numbers", "for each token the expected log-probability of one drawn from the model"),
        "stds": ("numbers", "its standard deviation"),
    },
    each=True,
    range=ANY,
    more_known="lower",
    source=citations.MIN_K_PLUS_PLUS,
)
def min_k_plus_plus(token_log_probs: ArrayLike, mean: ArrayLike, std: ArrayLike, k: float = 0.2) -> float:
    """`min_k` of log-probabilities that are standardised by the model's own distribution at each position.

    Min-K%++ (Zhang et al. 2024, arXiv 2404.02936) with the sign of a loss. OpenUnlearning takes k = 0.4 on TOFU.

    Args:
        token_log_probs: of each token, (tokens,), in nats.
        mean: expected log-probability of a token drawn from the model at that position, (tokens,).
        std: its standard deviation, (tokens,); less than 1e-3 counts as 1e-3.
        k: share in (0, 1]; max(1, floor(k * tokens)) tokens count.

    Raises:
        ValueError: an argument is empty or not finite, they differ in length, or `k` is out of range.
    """
    values, means, stds = (
        vector(numbers, name) for numbers, name in ((token_log_probs, "token_log_probs"), (mean, "mean"), (std, "std"))
    )
    same_length(token_log_probs=values, mean=means)
    same_length(token_log_probs=values, std=stds)
    return _mean_of_lowest((values - means) / np.maximum(stds, MIN_STD), k)


@register_metric(
    "zlib",
    inputs={
        "predictions": ("number", "mean negative log-likelihood per token of each text, in nats"),
        "references": ("text", "the texts"),
    },
    each=True,
    range=(0, float("inf")),
    more_known="lower",
    source=citations.EXTRACTION,
)
def zlib_score(nll: float, text: str) -> float:
    """Negative log-likelihood over the bytes that zlib needs for the text: how surprising it is for its content.

    Carlini et al. 2021 (arXiv 2012.07805).

    Args:
        nll: of the text, in nats; OpenUnlearning takes the mean over its tokens.
        text: what was scored.

    Raises:
        ValueError: `nll` is not finite.
    """
    return float(vector([nll], "nll")[0] / len(zlib.compress(text.encode())))


@register_metric(
    "reference_score",
    inputs={
        "predictions": ("number", "mean negative log-likelihood per token of each text, in nats"),
        "references": ("number", "the same under a model that was not trained on the texts"),
    },
    range=ANY,
    more_known="lower",
    source=citations.EXTRACTION,
)
def reference_score(nll: ArrayLike, reference_nll: ArrayLike) -> Floats:
    """Negative log-likelihood less that of a reference model, which was not trained on the members.

    Carlini et al. 2021 (arXiv 2012.07805); as in OpenUnlearning, both are means over the tokens of an example.

    Args:
        nll: (examples,), in nats.
        reference_nll: (examples,), in nats.

    Returns:
        (examples,)

    Raises:
        ValueError: an argument is empty or not finite, or the two differ in length.
    """
    own, reference = vector(nll, "nll"), vector(reference_nll, "reference_nll")
    same_length(nll=own, reference_nll=reference)
    return own - reference


def roc_auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """Probability that a member scores below a non-member, where equal scores count half.

    Args:
        members: scores of examples whose membership is in question (the forget set), (members,); lower = member.
        non_members: scores of examples that were never trained on (the holdout set), (non-members,).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: an argument is empty or not finite.
    """
    inside, outside = vector(members, "members"), vector(non_members, "non_members")
    ranks = rankdata(np.concatenate([outside, inside]))[: outside.size]  # equal scores share the mean of their ranks
    # Pairs whose non-member scores higher: Mann-Whitney's U.
    above = ranks.sum() - outside.size * (outside.size + 1) / 2
    return float(above / (inside.size * outside.size))


@register_metric(
    "roc_auc",
    inputs={
        "predictions": ("number", "score of each example, with the sign of a loss: the lower, the likelier a member"),
        "references": ("flag", "1 for each member (the forget set), 0 for each that was never trained on (holdout)"),
    },
    range=SHARE,
    source=citations.OPEN_UNLEARNING,
)
def roc_auc_of_flags(scores: ArrayLike, is_member: ArrayLike) -> float:
    """Probability that a member of the training set scores below a non-member; 0.5: scores say nothing.

    Args:
        scores: of each example, (examples,); lower = member.
        is_member: 1 or 0 for each, (examples,).

    Raises:
        ValueError: a flag is neither 0 nor 1, or there are no members or no non-members.
    """
    values, flags = np.asarray(scores, dtype=np.float64), np.asarray(is_member)
    if not np.isin(flags, (0, 1)).all():
        raise ValueError("roc_auc takes 1 (member) and 0 (non-member) as references.")
    return roc_auc(values[flags == 1], values[flags == 0])


@register_metric(
    "privacy_leakage",
    inputs={
        "predictions": ("number", "AUC of the attack on each unlearned model, as `roc_auc` gives it"),
        "references": ("number", "AUC of the same attack on a model retrained without the forget set"),
    },
    each=True,
    range=(-100, float("inf")),
    source=citations.MUSE,
)
def privacy_leakage(auc: float, reference_auc: float) -> float:
    """How far an attack's AUC is from that on a retrained model, in percent: ((1 - auc) - (1 - ref)) / (1 - ref) * 100.

    MUSE's PrivLeak (Shi et al. 2024, arXiv 2407.06460), whose AUC is 1 minus ours, as OpenUnlearning computes it. Zero
    is best. Below zero the forget set is still recognised as trained on; above, it stands out as unlearned.

    Args:
        auc: of the unlearned model, forget set against holdout set.
        reference_auc: of a model retrained without the forget set, on the same sets.

    Raises:
        ValueError: an AUC is not in [0, 1], or the reference's is 1, to which no other can be compared.
    """
    for name, value in (("auc", auc), ("reference_auc", reference_auc)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {value}.")
    if reference_auc == 1:
        raise ValueError(
            "reference_auc is 1: the attack tells forget and holdout set apart on a model that saw neither. They differ "
            "in more than membership, so it cannot measure leakage."
        )
    return (reference_auc - auc) / (1 - reference_auc) * 100


def _mean_of_lowest(values: Floats, k: float) -> float:
    if not 0 < k <= 1:
        raise ValueError(f"k must be in (0, 1], not {k}.")
    count = max(1, int(values.size * k))
    return float(-np.partition(values, count - 1)[:count].mean())
