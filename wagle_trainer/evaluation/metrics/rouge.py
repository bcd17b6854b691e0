"""How much of a reference text a generated text repeats: ROUGE (Lin 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from wagle_trainer.evaluation.metrics import citations
from wagle_trainer.evaluation.metrics.metric import SHARE, Entry, register_metric
from wagle_trainer.evaluation.metrics.metric_checks import Floats, same_length

_INPUTS: dict[str, tuple[Entry, str]] = {
    "predictions": ("text", "generated answers"),
    "references": ("text", "true answers"),
}


def _texts(response: Any) -> tuple[str, str] | None:
    return None if response.generation is None else (response.generation, response.answer)


_register = partial(
    register_metric, inputs=_INPUTS, range=SHARE, more_known="higher", of_response=_texts, source=citations.ROUGE
)


@_register("rouge_l_recall")
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
    return _rouge(predictions, references, "rougeL", True, "recall")


@_register("rouge_1_recall")
def rouge_1_recall(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """ROUGE-1 recall with stemming: the share of the reference's words that the prediction has, in any order.

    Args:
        predictions: generated texts.
        references: true answers, as many.

    Returns:
        (examples,), each in [0, 1].

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    return _rouge(predictions, references, "rouge1", True, "recall")


@_register("rouge_l_f1")
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
    return _rouge(predictions, references, "rougeL", use_stemmer, "fmeasure")


def _rouge(predictions: Sequence[str], references: Sequence[str], kind: str, use_stemmer: bool, of: str) -> Floats:
    same_length(predictions=predictions, references=references)
    scorer = _rouge_scorer(kind, use_stemmer)
    scores = [
        getattr(scorer.score(reference, prediction)[kind], of)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


@cache
def _rouge_scorer(kind: str, use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it imports nltk, which takes seconds

    return RougeScorer([kind], use_stemmer=use_stemmer)
