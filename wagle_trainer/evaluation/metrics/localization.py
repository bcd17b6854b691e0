"""Whether a score finds the weights that hold what is to be forgotten, where it is known which those are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from wagle_trainer.masking import WeightMask


def localization_precision(found: WeightMask, truth: WeightMask) -> float:
    """Share of the selected weights that belong to the true ones.

    Args:
        found: the mask of a score.
        truth: the mask that the facts were taught within. Its density is the precision of chance.

    Returns:
        In [0, 1].

    Raises:
        MaskMismatchError: the masks are of different models.
        ValueError: `found` selects nothing.
    """
    if found.num_selected == 0:
        raise ValueError("The mask selects no weight: its precision has no value.")
    return (found & truth).num_selected / found.num_selected


def localization_lift(found: WeightMask, truth: WeightMask) -> float:
    """Precision over that of chance: how many times more true weights than in a random mask of the same size.

    Args:
        found, truth: as for `localization_precision`.

    Raises:
        MaskMismatchError, ValueError: as `localization_precision`.
        ValueError: `truth` selects nothing.
    """
    if truth.num_selected == 0:
        raise ValueError("The true mask selects no weight: there is nothing to find.")
    return localization_precision(found, truth) / truth.density


def localization_auc(scores: Mapping[str, Tensor], truth: WeightMask) -> float:
    """Probability that a true weight has a higher score than another one; ties count half.

    The area under the ROC curve (the Mann-Whitney statistic), over all weights of the mask.

    Args:
        scores: parameter name -> score, of the parameter's shape.
        truth: the mask that the facts were taught within.

    Returns:
        In [0, 1]; 0.5 is chance.

    Raises:
        ValueError: names or shapes differ; a score is not finite; all weights are true, or none is.
    """
    if scores.keys() != set(truth) or any(tuple(scores[name].shape) != truth.shape(name) for name in truth):
        raise ValueError("The scores are not of the parameters of the true mask: names or shapes differ.")
    values = np.concatenate([scores[name].detach().cpu().float().numpy().ravel() for name in truth])
    if not np.isfinite(values).all():
        raise ValueError("A score is not finite.")
    positive = np.concatenate([truth[name].numpy().ravel() for name in truth])
    number = int(positive.sum())
    if number in (0, len(positive)):
        raise ValueError(f"{number} of {len(positive)} weights are true: there is nothing to tell apart.")
    ranks = rankdata(values)
    return float((ranks[positive].sum() - number * (number + 1) / 2) / (number * (len(positive) - number)))
