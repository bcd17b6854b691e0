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
            verdict: [c for c in same if c.verdict == verdict] for verdict in sorted({c.verdict for c in same})
        }
        if set(verdicts) == {"not tested"}:
            continue
        found = "; ".join(_finding(verdict, some, len(same)) for verdict, some in verdicts.items())
        how = f" ({_how(same[0])})" if set(verdicts) - {"not tested", "goal not reached"} else ""
        sentences.append(f"Against {family}, on {named.get(metric, metric)}: {found}{how}.")
    if not sentences:
        sentences.append(
            "There is one run of each model, so nothing is said here about which of them is better: that takes several "
            "seeds. Intervals are over the examples."
            if runs.seeds == 1
            else "No model was tested against another: there is no control among them, or the seeds change nothing."
        )
    return sentences


def _finding(verdict: str, some: Sequence[Comparison], all_of: int) -> str:
    """What was found of the models whose comparisons have this verdict."""
    labels = _labels([c.label for c in some], all_of)
    if verdict == "goal not reached":
        missed = list(dict.fromkeys(label for c in some for label in c.missed))
        return f"not compared for {labels} (the forget goal was missed by {_labels(missed, all_of)})"
    if verdict in ("better", "worse"):
        return f"{verdict} {'are' if len(some) > 1 else 'is'} {labels}"
    return f"{verdict} for {labels}"


def _how(comparison: Comparison) -> str:
    number = comparison.comparisons
    corrected = f", Holm-corrected for {number} comparisons" if number > 1 else ""
    return f"paired t-test over {comparison.seeds} seeds at the {1 - LEVEL:.0%} level{corrected}"


def attack_sentences(attacks: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The highest recovery rate of each attack: one sentence for one model, else a sentence for each attack.

    Args:
        attacks: label -> the attacks on that model.
    """
    if len(attacks) == 1:
        label, found = next(iter(attacks.items()))
        named = [f"{attack['attack'].replace('_', ' ')} {_rate(attack['recovered'])}" for attack in found]
        return [f"Highest recovery rates{f' of {label}' if label else ''}: {', '.join(named)}."] if named else []
    sentences = []
    for name in dict.fromkeys(attack["attack"] for found in attacks.values() for attack in found):
        rates = {label: a["recovered"] for label, found in attacks.items() for a in found if a["attack"] == name}
        said = "; ".join((f"{label}: " if label else "") + _rate(rate) for label, rate in rates.items())
        sentences.append(f"Highest recovery rate of {name.replace('_', ' ')}: {said}.")
    return sentences


def _rate(rate: float | None) -> str:
    return "none (too little was forgotten)" if rate is None else f"{rate:.1%}"


def _labels(labels: Sequence[str], all_of: int) -> str:
    if len(labels) > 6:
        return f"all {all_of}" if len(labels) == all_of else f"{len(labels)} of {all_of}"
    return ", ".join(labels[:-1]) + " and " + labels[-1] if len(labels) > 1 else labels[0]
