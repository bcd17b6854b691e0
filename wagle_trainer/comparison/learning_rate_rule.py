"""The learning rate that counts for a variant, by the same rule for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wagle_trainer.reporting.statistics import mean

RETRAINED = "retrained without the forget set"
Results = Sequence[Mapping[str, Any]]  # one for each seed


class Pick(NamedTuple):
    """The learning rate that counts for a variant, whether it reaches the forget goal, and its results."""

    learning_rate: float
    reached: bool
    results: Results


def pick(by_rate: Mapping[float, Results], goal: float, compare: Any) -> Pick | None:
    """The learning rate with the best utility among those that reach the forget goal.

    Args:
        by_rate: learning rate -> results, one for each seed.
        goal: value of the forget metric from which a variant counts as having forgotten.
        compare: the `ComparisonArguments`.

    Returns:
        Of the learning rates whose mean over seeds reaches the forget goal, the one with the best mean utility; if none
        does, the one that forgets most; the lower of two that are equal. Rates with a failed seed do not count: None if no
        rate is left.
    """
    sign = 1 if compare.suite.forget_metrics[compare.forget_metric] == "higher" else -1
    keep = 1 if compare.suite.utility_metrics[compare.utility_metric] == "higher" else -1
    found = []
    for rate, results in by_rate.items():
        if not any("failed" in result for result in results):
            forgotten = sign * mean([result[compare.forget_metric] for result in results])
            utility = keep * mean([result[compare.utility_metric] for result in results])
            reached = forgotten >= sign * goal
            found.append(((reached, utility if reached else forgotten, -rate), Pick(rate, reached, results)))
    return max(found, key=lambda entry: entry[0])[1] if found else None


def forget_goal(references: Mapping[str, Results], compare: Any) -> float:
    """The value of the forget metric from which a variant counts as having forgotten.

    Args:
        references: measurements of the reference and of the retrained models.
        compare: arguments of the comparison.

    Raises:
        ValueError: there is no number to derive it from.
    """
    if compare.forget_goal is not None:
        return compare.forget_goal
    metric, ends = compare.forget_metric, [references.get("before", ()), references.get(RETRAINED, ())]
    if not all(end and metric in end[0] for end in ends):
        raise ValueError(
            f"The forget goal is a share of the distance of {metric} from the reference to a retrained model, but not "
            "both have that number: give --forget_goal, or a --retrained_model."
        )
    before, retrained = (mean([result[metric] for result in end]) for end in ends)
    return before + compare.forget_share * (retrained - before)
