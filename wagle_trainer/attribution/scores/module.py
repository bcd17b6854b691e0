"""Modules chosen by name."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("module")
def module(weight: Tensor, name: str, patterns: str | Sequence[str] = ()) -> Tensor:
    """1 in the modules whose names match one of `patterns`, 0 elsewhere; looks at no data.

    `patterns` are regular expressions searched for in parameter names: "o_proj|v_proj", "mlp", r"layers\\.[4-8]\\.".
    The density counts as for every score: below the modules' share of the weights only their first weights are selected,
    above it the first weights of other modules, too. For all weights of some modules and nothing else, take
    include=patterns and density=1.0.

    Raises:
        ValueError: no pattern."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not patterns:
        raise ValueError('The score "module" needs patterns: attribution_kwargs={"patterns": ["o_proj", "mlp"]}.')
    found = any(re.search(pattern, name) for pattern in patterns)
    return torch.full(weight.shape, float(found), device=weight.device)
