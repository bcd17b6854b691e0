"""The sentences at the top of a report: what the data support, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wagle_trainer.reporting.report_inputs import Runs
from wagle_trainer.reporting.statistics import LEVEL, Comparison, Interval

_NARRATED = 3  # unlearned models that get a sentence of their own; the table has them all


def forgetting_sentences(
    intervals: Mapping[str, Mapping[str, Interval]],
    unlearned: Sequence[str],
    metrics: Mapping[str, str],
    references: Sequence[str],
) -> list[str]:
    """The main numbers before and after: "forget prob went from 0.983 to 0.122, ...".

    Args:
        intervals: label -> metric -> mean and interval.
        unlearned: labels of the unlearned models, the most important one first.
        metrics: the main numbers -> what to call them.
        references: labels of the reference model and the retrained models, in this order, as far as there are any.
    """
    sentences = []
    for label in unlearned[:_NARRATED]:
        parts = []
        for metric, name in metrics.items():
            known = [r for r in references if metric in intervals[r]]
            before = [f"from {intervals[r][metric].mean:.3f} " for r in known if r == "before"]
            others = [f"{r}: {intervals[r][metric].mean:.3f}" for r in known if r != "before"]
            went = "went " + before[0] + "to" if before else "is"
            parts.append(
                f"{name} {went} {intervals[label][metric].mean:.3f}" + (f" ({', '.join(others)})" if others else "")
            )
        if parts:
            sentences.append(f"{label}: {'; '.join(parts)}.")
    return sentences


def verdict_sentences(tested: Sequence[Comparison], named: Mapping[str, str], runs: Runs) -> list[str]:
    """What the tests found: one sentence for each family of comparisons and number."""
    sentences = []
    for family, metric in dict.fromkeys((c.family, c.metric) for c in tested):
        same = [c for c in tested if (c.family, c.metric) == (family, metric)]
        verdicts = {
            verdict: [c.label for c in same if c.verdict == verdict]
            for verdict in dict.fromkeys(c.verdict for c in same)
        }
        verdicts.pop("not tested", None)
        if not verdicts:
            continue
        if set(verdicts) == {"goal not reached"}:
            sentences.append(
                f"Against {family}, {named.get(metric, metric)} is not compared: the forget goal was missed."
            )
            continue
        found = "; ".join(
            f"{verdict} {'for' if verdict in ('no difference found', 'goal not reached') else 'are' if len(labels) > 1 else 'is'} "
            f"{_labels(labels, len(same))}"
            for verdict, labels in sorted(verdicts.items())
        )
        sentences.append(f"Against {family}, on {named.get(metric, metric)}: {found} ({_how(same[0])}).")
    if not sentences:
        sentences.append(
            "There is one run of each model, so nothing is said here about which of them is better: that takes several "
            "seeds. Intervals are over the examples."
            if runs.seeds == 1
            else "No model was tested against another: there is no control among them, or the seeds change nothing."
        )
    return sentences


def _how(comparison: Comparison) -> str:
    number = comparison.comparisons
    corrected = f", Holm-corrected for {number} comparisons" if number > 1 else ""
    return f"paired t-test over {comparison.seeds} seeds at the {1 - LEVEL:.0%} level{corrected}"


def attack_sentences(attacks: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The highest recovery rate of each attack: "Highest recovery rate of relearning: wagle: 37.1%; ...".

    Args:
        attacks: label -> the attacks on that model.
    """
    sentences = []
    for name in dict.fromkeys(attack["attack"] for found in attacks.values() for attack in found):
        rates = {label: a["recovered"] for label, found in attacks.items() for a in found if a["attack"] == name}
        said = "; ".join(
            (f"{label}: " if label else "") + ("none, too little was forgotten" if rate is None else f"{rate:.1%}")
            for label, rate in rates.items()
        )
        sentences.append(f"Highest recovery rate of {name.replace('_', ' ')}: {said}.")
    return sentences


def _labels(labels: Sequence[str], all_of: int) -> str:
    if len(labels) > 6:
        return f"all {all_of}" if len(labels) == all_of else f"{len(labels)} of {all_of}"
    return ", ".join(labels[:-1]) + " and " + labels[-1] if len(labels) > 1 else labels[0]
