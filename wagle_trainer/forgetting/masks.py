"""Weight masks of several sizes from one pass over the data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor

from wagle_trainer.attribution import attribute, get_score
from wagle_trainer.attribution.selection import select
from wagle_trainer.data.facts import pad_examples
from wagle_trainer.masking import WeightMask
from wagle_trainer.models.architecture import output_head

Tokens = dict[str, list[int]]


def masks_by_density(
    model: Any,
    forget: Sequence[Tokens],
    retain: Sequence[Tokens],
    score: str,
    densities: Sequence[float],
    *,
    batch_size: int = 8,
    seed: int = 0,
    embeddings: bool = True,
) -> dict[float, WeightMask]:
    """The masks of one score at several densities; the gradients are computed once.

    Args:
        model: the reference model.
        forget, retain: tokenized sets.
        score: its name.
        densities: shares of the weights, each in (0, 1].
        batch_size: examples per forward pass.
        seed: of the score "random".
        embeddings: whether word embeddings and the output head are among the candidates.

    Returns:
        density -> mask. A small mask is part of a larger one.

    Raises:
        ValueError, FloatingPointError: as `attribute`.
    """
    function, kept = get_score(score), []

    @wraps(function)
    def keeping(*args: Any, **kwargs: Any) -> Tensor | None:
        values = function(*args, **kwargs)
        if values is not None:
            kept.append(values.float().abs())  # a copy, and without -0.0, as `attribute` has it
        return values

    first = attribute(
        model,
        _batches(forget, batch_size),
        _batches(retain, batch_size),
        score=keeping,
        density=densities[0],
        exclude=None if embeddings else [f"^{re.escape(name)}$" for name in word_weights(model)],
        seed=seed,
        progress=False,
    )
    scores = dict(zip(first, kept, strict=True))
    shapes = {name: first.shape(name) for name in first}
    found = {}
    for density in densities:
        info = replace(first.info, score=score, requested_density=density)
        if density == densities[0]:
            packed = {name: first.packed(name) for name in first}
        else:
            info = replace(info, effective_density=None, score_histogram=None)
            packed = {name: bits.cpu() for name, bits in select(dict(scores), density).items()}
            packed = {name: packed[name] for name in first}
        found[density] = WeightMask(packed, shapes, info)
    return found


def word_weights(model: Any) -> list[str]:
    """Names of the parameters that have a row for each word: input embeddings and output head.

    Args:
        model: of Transformers.
    """
    modules = [model.get_input_embeddings(), output_head(model)]
    found = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in found]


def _batches(examples: Sequence[Tokens], batch_size: int) -> list[Any]:
    order = sorted(examples, key=lambda example: -len(example["input_ids"]))
    return [pad_examples(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
