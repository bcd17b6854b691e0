"""Answers to show, chosen by a rule and not by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wagle_trainer.reporting.report_inputs import Runs

# Sets with answers to show -> the column by which they are chosen: those of TOFU, MUSE and copyright.
_SETS = {"forget": "rouge_l_recall", "knowmem_forget": "rouge_l_f1", "seen": "rouge_l_recall"}
_NAMES = {"rouge_l_recall": "ROUGE-L recall", "rouge_l_f1": "ROUGE-L F1"}


def quantiles_for(number: int) -> list[float]:
    """Quantiles at equal distances, from the lowest to the highest; of one, the median."""
    return [place / (number - 1) for place in range(number)] if number > 1 else [0.5]


def rows_at_quantiles(values: Sequence[float], quantiles: Sequence[float]) -> list[int]:
    """Which rows stand at the quantiles of the values: row of rank round(q * (n - 1)), equal values in their order.

    Returns:
        Row numbers from the lowest quantile to the highest, each once.
    """
    order = np.argsort(values, kind="stable")
    return list(dict.fromkeys(int(order[round(q * (len(values) - 1))]) for q in quantiles))


def example_answers(
    runs: Runs, chosen_by: str, labels: Sequence[str], number: int
) -> tuple[str, list[dict[str, Any]]] | None:
    """Forget questions at the quantiles of ROUGE-L after unlearning, with the answers of several models.

    Args:
        runs: the evaluations.
        chosen_by: label of the unlearned model whose ROUGE chooses the questions, by its first seed.
        labels: whose answers are shown.
        number: of questions.

    Returns:
        The rule as a sentence, and for each question {"question", "answer", "answers": [{"label", "text", "rouge"},
        ...]}; None where the evaluation kept no answers.

    Raises:
        ValueError: two of the models were asked other questions.
    """
    kept = {label: runs.by_label[label][0].get("per_example", {}) for label in (chosen_by, *labels)}
    name = next((name for name in _SETS if name in kept[chosen_by]), "forget")
    found, rouge = {label: sets.get(name, {}) for label, sets in kept.items()}, _SETS[name]
    columns = ("question", "answer", "generation", rouge)
    if not all(column in found[chosen_by] for column in columns):
        return None
    questions = found[chosen_by]["question"]
    shown = [label for label in labels if all(column in found[label] for column in columns)]
    for label in shown:
        if found[label]["question"] != questions:
            raise ValueError(
                f"{chosen_by!r} and {label!r} were asked other forget questions: evaluate both on the same."
            )
    quantiles = quantiles_for(number)
    first = " (first seed)" if runs.seeds > 1 else ""
    rule = (
        f"The forget questions at the quantiles {', '.join(f'{q:g}' for q in quantiles)} of the {_NAMES[rouge]} of "
        f"“{chosen_by}”{first}, from the best forgotten to the least; the earlier question where several are equal."
    )
    examples = [
        {
            "question": questions[row],
            "answer": found[chosen_by]["answer"][row],
            "answers": [
                {"label": label, "text": found[label]["generation"][row], "rouge": found[label][rouge][row]}
                for label in shown
            ],
        }
        for row in rows_at_quantiles(found[chosen_by][rouge], quantiles)
    ]
    return rule, examples
