"""How much of a text another one repeats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from wagle_trainer.evaluation.metrics.metric_checks import Floats, same_length


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """ROUGE-L recall with stemming: the share of the reference's words that the prediction has in the same order.

    Args:
        predictions: generated texts.
        references: true answers, as many.

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    same_length(predictions=predictions, references=references)
    scores = [
        _rouge_scorer(True).score(reference, prediction)["rougeL"].recall
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def rouge_l_f1(predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = False) -> Floats:
    """ROUGE-L F1: harmonic mean of the shares of either text's words that the other has in the same order.

    Args:
        predictions: generated texts.
        references: true texts, as many.
        use_stemmer: words with the same stem count as the same. MUSE's code does without, OpenUnlearning's does not.

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    same_length(predictions=predictions, references=references)
    scorer = _rouge_scorer(use_stemmer)
    scores = [scorer.score(true, said)["rougeL"].fmeasure for said, true in zip(predictions, references, strict=True)]
    return np.array(scores, dtype=np.float64)


@cache
def _rouge_scorer(use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it imports nltk, which takes seconds

    return RougeScorer(["rougeL"], use_stemmer=use_stemmer)
