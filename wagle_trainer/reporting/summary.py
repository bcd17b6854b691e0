"""The sentences at the top of a report: what the data support, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wagle_trainer.reporting.inputs import Runs
from wagle_trainer.reporting.statistics import LEVEL, Comparison, Interval

_NARRATED = 3  # unlearned models that get a sentence of their own; the table has them all


def forgetting_sentences(
    runs: Runs,
    intervals: Mapping[str, Mapping[str, Interval]],
    unlearned: Sequence[str],
    metrics: Mapping[str, str],
    references: Sequence[str],
) -> list[str]:
    """What became of the main numbers: "forget prob went from 0.983 to 0.122, ...".

    Args:
        runs: the evaluations.
        intervals: label -> metric -> mean and interval.
        unlearned: labels of the unlearned models, the most important one first.
        metrics: the main numbers -> what to call them.
        references: labels of the models before unlearning and retrained, in this order, as far as there are any.
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
        if "not tested" in verdicts:
            continue
        found = "; ".join(
            f"{verdict} {'for' if verdict == 'no difference found' else 'are' if len(labels) > 1 else 'is'} "
            f"{_enumerate(labels)}"
            for verdict, labels in sorted(verdicts.items())
        )
        sentences.append(f"Against {family}, on {named.get(metric, metric)}: {found} ({_how(same)}).")
    if not sentences:
        sentences.append(
            "There is one run of each model, so nothing is said here about which of them is better: that takes several "
            "seeds. Intervals are over the examples."
            if runs.seeds == 1
            else "No model was tested against another: there is no control among them."
        )
    return sentences


def _how(comparisons: Sequence[Comparison]) -> str:
    number = len(comparisons)
    corrected = f", Holm-corrected for {number} comparisons" if number > 1 else ""
    return f"paired t-test over {comparisons[0].seeds} seeds at the {1 - LEVEL:.0%} level{corrected}"


def _enumerate(labels: Sequence[str]) -> str:
    if len(labels) > 6:
        return f"{len(labels)} of them"
    return ", ".join(labels[:-1]) + " and " + labels[-1] if len(labels) > 1 else labels[0]
