"""How much of an answer a model knows by heart, from its most likely tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, Entry, register_metric

_INPUTS: dict[str, tuple[Entry, str]] = {
    "predictions": ("flags", "for each answer, whether each of its tokens is the most likely one")
}


def _is_top1(response: Any) -> tuple[Any] | None:
    return (response.score.is_top1,) if response.score is not None and response.score.is_top1 else None


_register = partial(register_metric, inputs=_INPUTS, each=True, range=SHARE, more_known="higher", of_response=_is_top1)


@_register("exact_memorization", source=citations.MEMORIZATION)
def exact_memorization(is_top1: ArrayLike) -> float:
    """Share of an answer's tokens that are the most likely ones after the true tokens before them.

    From Tirumala et al. 2022 (arXiv 2205.10770) as defined in OpenUnlearning (arXiv 2506.12618). As in its code, the
    end-of-sequence token does not belong to the answer.

    Args:
        is_top1: for each of the n answer tokens, whether it is the most likely one after all tokens before it.

    Returns:
        A number in [0, 1]: 1 if every next token is predicted.

    Raises:
        ValueError: `is_top1` is empty.
    """
    return float(_flags(is_top1, "exact memorization").mean())


@_register("verbatim_prefix", source=citations.EXTRACTION)
def verbatim_prefix(is_top1: ArrayLike) -> float:
    """Share of an answer's tokens that greedy decoding reproduces before the first that differs.

    Args:
        is_top1: for each of the n answer tokens, whether it is the most likely one after all tokens before it.

    Returns:
        A number in [0, 1]: 1 if the whole answer is reproduced word for word.

    Raises:
        ValueError: `is_top1` is empty.
    """
    flags = _flags(is_top1, "verbatim prefix")
    return float(np.cumprod(flags).mean())


@_register("extraction_strength", source=citations.EXTRACTION)
def extraction_strength(is_top1: ArrayLike, *, at_least_one_token: bool = False) -> float:
    """1 - (1 / n) min{k : all tokens after the first k are predicted}: how short a prefix recalls the rest of an answer.

    From Carlini et al. 2021 (arXiv 2012.07805) as defined in OpenUnlearning (arXiv 2506.12618). Where not even the
    last token is predicted this is 0; OpenUnlearning's code, unlike its definition, gives 1 / n there. As in its code,
    the end-of-sequence token does not belong to the answer.

    Args:
        is_top1: for each of the n answer tokens, whether it is the most likely one after all tokens before it.
        at_least_one_token: 1 / n in place of 0, as OpenUnlearning's code.

    Returns:
        A number in [0, 1]: 1 if the question alone recalls the whole answer.

    Raises:
        ValueError: `is_top1` is empty.
    """
    flags = _flags(is_top1, "extraction strength")
    misses = np.flatnonzero(~flags)
    prefix = int(misses[-1]) + 1 if misses.size else 0
    return 1 - min(prefix, flags.size - at_least_one_token) / flags.size


def _flags(is_top1: ArrayLike, metric: str) -> NDArray[np.bool_]:
    flags = np.asarray(is_top1, dtype=bool)
    if flags.size == 0:
        raise ValueError(f"is_top1 is empty: an answer without tokens has no {metric}.")
    return flags
