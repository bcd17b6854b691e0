"""A score compared with random weights: how many times fewer it needs, and what it leaves and keeps at the same size.

A score's smallest patch on a seed is the smallest density at which it reaches the goal. The densities that were tried are steps: if
more weights never do worse, it lies above the largest one below it that failed. So the ratio of two of them lies between two bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from patch_size_groups import Group

from wagle_trainer.reporting.statistics import paired_p_value, t_interval


@dataclass(frozen=True)
class Ratio:
    """How many times more weights random needs than a score, over the seeds that both were run with.

    Attributes:
        least: lower bound, geometric mean over the seeds: the largest density at which random failed, below the one at which it
            reached the goal, divided by the density at which the score did. None where random reached it at its smallest.
        most: upper bound: the density at which random reached the goal, divided by the largest at which the score failed. None
            where random reached it at no density, or the score at its smallest.
        low, high: ends of the 95 % intervals of `least` (its lower end) and `most` (its upper end): Student's t over the seeds'
            logarithms. None with one seed, and without the bound.
        seeds: how many.
    """

    least: float | None
    most: float | None
    low: float | None
    high: float | None
    seeds: int

    @property
    def tells(self) -> bool:
        """Whether the bounds leave out that a score needs far more, or far fewer, weights than random."""
        below, above = self.least or 0.0, math.inf if self.most is None else self.most
        return below >= 1 or above <= 1 or (below > 0 and above < math.inf)

    def __str__(self) -> str:
        if not self.tells:
            return f"unknown (n = {self.seeds})"
        if self.most is None:
            bounds = f">= {self.least:.3g}"
        elif self.least is None:
            bounds = f"<= {self.most:.3g}"
        else:
            bounds = f"{self.least:.3g} to {self.most:.3g}"
        return f"{bounds} ({self.interval()}; n = {self.seeds})"

    def interval(self) -> str:
        """The interval in words; of a missing bound no end."""
        if self.low is None and self.high is None:
            return "one seed"
        ends = "" if self.low is None else f"from {self.low:.3g}", "" if self.high is None else f"to {self.high:.3g}"
        return "95 % " + " ".join(filter(None, ends))

    def in_words(self) -> str:
        """What a score needs, where the bounds tell: "at least 15 times fewer weights than"."""
        least, most = (None if bound is None else float(f"{bound:.3g}") for bound in (self.least, self.most))
        if least is not None and least >= 1:
            if most is not None:
                return f"between {least:g} and {most:g} times fewer weights than"
            return "at most as many weights as" if least == 1 else f"at least {least:g} times fewer weights than"
        if most is not None and most <= 1:
            if least is not None:
                return f"between {1 / most:.3g} and {1 / least:.3g} times more weights than"
            return "at least as many weights as" if most == 1 else f"at least {1 / most:.3g} times more weights than"
        assert least is not None and most is not None, "no ratio to put in words: ask `tells` first"
        return f"between {1 / least:.3g} times more and {most:g} times fewer weights than"


def ratio_to_random(group: Group, label: str, robust: bool) -> Ratio | None:
    """Of the smallest densities, seed by seed; None where the score misses the goal on some seed.

    Args:
        robust: also after relearning and in 4 bits, compared with all weights.
    """
    least: list[float | None] = []
    most: list[float | None] = []
    for seed in group.seeds():
        own_tried, random_tried = group.tried(label, seed), group.tried("random", seed)
        if not own_tried or not random_tried:
            continue
        own, chance = group.smallest(label, seed, robust), group.smallest("random", seed, robust)
        if own is None:
            return None
        failed = [density for density in random_tried if chance is None or density < chance]
        own_failed = [density for density in own_tried if density < own]
        least.append(failed[-1] / own if failed else None)
        most.append(chance / own_failed[-1] if chance is not None and own_failed else None)
    if not least:
        return None
    (lower, low, _), (upper, _, high) = _geometric(least), _geometric(most)
    return Ratio(lower, upper, low, high, len(least))


def _geometric(bounds: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Geometric mean and its 95 % interval; None throughout where one seed has no bound."""
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds):
        return None, None, None
    found = t_interval([math.log10(bound) for bound in known])
    low, high = (None if end is None else 10**end for end in (found.low, found.high))
    return 10**found.mean, low, high


def differences_table(group: Group) -> list[list[str]]:
    """Each mask minus random weights of the same density, and minus all weights: paired over the seeds.

    Mean difference, 95 % interval (Student's t) and p-value (paired t-test), not corrected for their number. Empty where no two
    runs can be paired on two seeds.
    """
    shown = {"forget": "forget", "retain": "retain", "held_out": "unseen", "relearned": "relearned"}
    lines = [["score", "density", "minus", "seeds", *shown.values()]]
    for label in group.labels():
        for density in group.densities(label):
            for other, size in (("random", density), ("all weights", 1.0)):
                if label == other:
                    continue
                own, others = group.chosen(label, density), group.chosen(other, size)
                seeds = [
                    s for s in sorted(set(own) & set(others)) if "failed" not in own[s] and "failed" not in others[s]
                ]
                if len(seeds) < 2:
                    continue
                cells = []
                for name in shown:
                    pairs = [(own[s][name], others[s][name]) for s in seeds if name in own[s] and name in others[s]]
                    cells.append(_difference(pairs))
                lines.append([label, f"{density:g}", other, str(len(seeds)), *cells])
    return lines if len(lines) > 1 else []


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    if len(pairs) < 2:
        return "-"
    found = t_interval([own - other for own, other in pairs])
    p = paired_p_value([own for own, _ in pairs], [other for _, other in pairs])
    return f"{found.mean:+.3f} ({found.low:.3f} to {found.high:.3f})" + ("" if p is None else f", p {p:.2g}")
