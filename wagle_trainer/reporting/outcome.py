"""The outcome in words: how many answers are gone, how many were recovered, how many others are unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wagle_trainer.reporting.report_inputs import Runs

# By the mean probability per token that the model gives an answer (the geometric mean over its tokens).
KNOWN, GONE, UNCHANGED = 0.5, 0.5, 0.9
_BY_CHANCE = {
    "sampling": " (the best of many answers, which chance alone makes better: compare with a retrained model)"
}
_REVOKES = "removal"  # puts reference weights back: who has them needs no attack
RULE = (
    f"An answer counts as known where the reference model gives its tokens a mean probability of at least {KNOWN:.0%}, as gone "
    f"where the unlearned model gives it less than {GONE:.0%} of that, and as unchanged at {UNCHANGED:.0%} of it or more."
)


class Outcome(NamedTuple):
    """What stands at the top of a report.

    Attributes:
        forgotten: the decision, where one was made.
        lines: sentences.
        rule: how answers were counted; empty if the sentences say it.
        counts: the numbers in the sentences.
    """

    forgotten: bool | None
    lines: list[str]
    rule: str
    counts: dict[str, Any]


def read_outcome(verdict: Mapping[str, Any]) -> Outcome:
    """The outcome that `wagle forget` wrote to `verdict.json`.

    Args:
        verdict: `forgotten`, and what is there of `sentences`, which are shown as they are, and of `forget`, `retain`, `unseen`
            and `attacks`, which are kept as `counts`.

    Raises:
        ValueError: it is no verdict.
    """
    if not isinstance(verdict, Mapping) or not isinstance(verdict.get("forgotten"), bool):
        raise ValueError("A verdict has the key 'forgotten', true or false: pass what `wagle forget` wrote.")
    checks = {
        "patch": isinstance(verdict.get("patch") or {}, Mapping),
        "tries": isinstance(verdict.get("tries") or [], list),
        "sentences": isinstance(verdict.get("sentences") or [], list),
    }
    if wrong := [name for name, right in checks.items() if not right]:
        raise ValueError(f"A verdict's {wrong[0]!r} is of another form: pass what `wagle forget` wrote.")
    counts = {name: verdict[name] for name in ("forget", "retain", "unseen", "attacks") if name in verdict}
    return Outcome(verdict["forgotten"], [str(line) for line in verdict.get("sentences") or []], "", counts)


def counted_outcome(runs: Runs, before: str, after: str, attacks: Sequence[Mapping[str, Any]]) -> Outcome | None:
    """An outcome counted from the examples of two evaluations; None where they have no answer probabilities.

    Args:
        runs: the evaluations.
        before: label of the reference model.
        after: label of the unlearned model; its first seed is counted.
        attacks: on that model.
    """
    if before not in runs.by_label:
        return None
    known: dict[str, dict[str, int]] = {}
    sets = runs.by_label[before][0].get("per_example", {})
    others: list[str] = []
    for name, columns in sets.items():
        found = runs.by_label[after][0].get("per_example", {}).get(name, {})
        old, new = columns.get("probability"), found.get("probability")
        if old is None or new is None or len(old) != len(new):
            continue
        side = "forget" if "forget" in name or name == "seen" else "others"
        if side == "others":
            others.append(name.replace("_", " "))
        counts = known.setdefault(side, {"asked": 0, "known": 0, "gone": 0, "unchanged": 0})
        counts["asked"] += len(old)
        for one, other in zip(old, new, strict=True):
            if one >= KNOWN:
                counts["known"] += 1
                counts["gone"] += other < GONE * one
                counts["unchanged"] += other >= UNCHANGED * one
    if "forget" not in known:
        return None
    lines = [_counted("answers to forget", known["forget"], "gone")]
    rates = [attack for attack in attacks if attack.get("recovered") is not None and attack["attack"] != _REVOKES]
    if rates:
        strongest = max(rates, key=lambda attack: attack["recovered"])
        lines.append(
            f"{strongest['recovered']:.0%} of the forgotten knowledge was recovered by the strongest attack, "
            f"{strongest['attack'].replace('_', ' ')}{_BY_CHANCE.get(strongest['attack'], '')}."
        )
    if "others" in known:
        lines.append(_counted(f"other answers ({', '.join(others)})", known["others"], "unchanged"))
    return Outcome(None, lines, RULE, known)


def _counted(what: str, counts: Mapping[str, int], outcome: str) -> str:
    if counts["known"] == 0:
        return f"The reference model knew none of {counts['asked']} {what}."
    rest = (
        ""
        if counts["known"] == counts["asked"]
        else f" that the reference model knew, out of {counts['asked']} asked,"
    )
    return f"Of {counts['known']} {what}{rest} {counts[outcome]} {'is' if counts[outcome] == 1 else 'are'} {outcome}."
