"""How a label of the patch study selects weights: by a score, by a score without the embeddings, or with no score at all.

"snip" is the score of that name. "snip-body" is the same over all weights but the input embeddings and the output head.
"answer_rows" is the control that knows only what the answers to forget are: random weights of their tokens' embedding rows.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from tasks.subject import Subject

from wagle_trainer import WeightMask
from wagle_trainer.attribution import get_score, starting_rate
from wagle_trainer.forgetting.masks import word_weights

NO_MASK = "none"
ANSWER_ROWS = "answer_rows"
_BODY = "-body"


def spread(label: str) -> tuple[str, float | str | None]:
    """Score and gamma of a label: "wagle:1e-6" is ("wagle", 1e-6), "snip-body" is ("snip-body", None)."""
    score, _, gamma = label.partition(":")
    if not gamma:
        return score, 1e-6 if score.removesuffix(_BODY) == "wagle" else None
    try:
        return score, float(gamma)
    except ValueError:
        return score, gamma


def check_label(label: str) -> None:
    """Refuse a label that names neither a score nor a control.

    Raises:
        ValueError: unknown; the message lists the scores.
    """
    if label != ANSWER_ROWS:
        get_score(spread(label)[0].removesuffix(_BODY))


def first_rate(label: str, density: float, base: float) -> float:
    """Where the search for a learning rate begins.

    Args:
        label: of the mask; "none" for all weights.
        density: its share.
        base: where the search begins for all weights.
    """
    if label in (NO_MASK, "truth"):
        return starting_rate(density, None, base)
    # Rows of the answers' tokens are the embeddings that the answers' loss depends on most, as if gradients chose them.
    return starting_rate(density, "gradient" if label == ANSWER_ROWS else spread(label)[0].removesuffix(_BODY), base)


def attribution_arguments(score: str, model: Any) -> dict[str, Any]:
    """The trainer's arguments for a score, which may be one without the embeddings."""
    if not score.endswith(_BODY):
        return {"attribution": score}
    patterns = [f"^{re.escape(name)}$" for name in word_weights(model)]
    return {"attribution": score.removesuffix(_BODY), "attribution_exclude": patterns}


def answer_rows(subject: Subject, density: float, seed: int) -> WeightMask:
    """Random weights of the rows of the input embeddings that belong to tokens of the forget answers.

    Args:
        subject: the model, and the forget set whose labels name the rows.
        density: weights to select, as a share of all weights of the model.
        seed: of the draw.

    Raises:
        ValueError: the rows have fewer weights.
    """
    parameters = dict(subject.model.named_parameters())
    embedding = subject.model.get_input_embeddings().weight
    [name] = [key for key, parameter in parameters.items() if parameter is embedding]
    labels = {label for example in subject.sets["forget"] for label in example["labels"]}
    tokens = torch.tensor(sorted(labels - {-100, *subject.tokenizer.all_special_ids}))
    width, number = embedding.shape[1], int(density * sum(parameter.numel() for parameter in parameters.values()))
    if not 0 < number <= len(tokens) * width:
        raise ValueError(
            f"{ANSWER_ROWS} at density {density:g} are {number} weights; the {len(tokens)} tokens of the answers have "
            f"{len(tokens) * width}. Take another density."
        )
    places = torch.randperm(len(tokens) * width, generator=torch.Generator().manual_seed(seed))[:number]
    selected = {key: torch.zeros(parameter.shape, dtype=torch.bool) for key, parameter in parameters.items()}
    selected[name][tokens[places // width], places % width] = True
    return WeightMask.from_dict(selected)
