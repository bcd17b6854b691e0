"""What a model gave to one row of a set, and the columns that metrics make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wagle_trainer.evaluation.metrics import get_metric, list_metrics
from wagle_trainer.evaluation.suites.suite_metric import SuiteMetric

if TYPE_CHECKING:  # it needs torch
    from wagle_trainer.evaluation.answer_scores import AnswerScore


@dataclass
class Response:
    """What a model gave to one row.

    Attributes:
        question: the prompt.
        answer: the true answer.
        score: how likely the model finds the true answer.
        generation: what it answered.
        truth: the score of the answer that the truth ratio takes as correct.
        wrong: the scores of wrong answers.
    """

    question: str
    answer: str
    score: AnswerScore | None = None
    generation: str | None = None
    truth: AnswerScore | None = None
    wrong: list[AnswerScore] = field(default_factory=list)


def add_columns(columns: dict[str, list[Any]], responses: list[Response], table: Sequence[SuiteMetric]) -> None:
    """Add the columns that a suite's metrics are of and that registered metrics of the same name give.

    Args:
        columns: of one set, which the suite has filled so far; what is there stays.
        responses: one for each row.
        table: the suite's metrics.
    """
    places = (place for metric in table if metric.statistic is not None for place in metric.statistic.places())
    for column in dict.fromkeys(column for _, column in places):
        if column in columns or column not in list_metrics():
            continue
        values = get_metric(column).of_responses(responses)
        if values is not None:
            columns[column] = values
