"""The rows of the output head for the words to forget."""

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("answer_rows")
def answer_rows(weight: Tensor, generator: torch.Generator, forget_targets: Tensor | None) -> Tensor:
    """Random weights in the head's rows for the forget answers' tokens; then random weights of all else. Looks at no gradient.

    With tied embeddings these are the embeddings of the tokens, too. A patch within such rows makes the words of the answers
    less likely, whoever asks for them: it is for names, not for knowledge that is written in everyday words."""
    # Drawn on the CPU, so that the mask does not depend on where the model lies.
    counts = torch.zeros(0) if forget_targets is None else forget_targets.flatten().cpu()
    rows = counts.nonzero().flatten()
    places = len(rows) * weight.shape[-1]
    order = torch.randperm(places, generator=generator)
    values = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
    if places:
        first = torch.empty(places, dtype=torch.float64)
        first[order] = 2 - torch.arange(places, dtype=torch.float64) / places  # above all others
        values[rows] = first.float().view(len(rows), -1)
    return values.to(weight.device)
