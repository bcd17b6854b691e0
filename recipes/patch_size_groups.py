"""The rows of a study of patch sizes by model, task and objective, and which of them reach the goal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
CLOSE = 0.02  # of probability: what counts as no worse than all weights


def label_of(row: Row) -> str:
    """What a variant is called."""
    if row["score"] == "none":
        return "all weights"
    return row["score"] if row["gamma"] is None else f"{row['score']}, gamma {row['gamma']}"


@dataclass(frozen=True)
class Group:
    """One model, task and objective."""

    model: str
    task: str
    objective: str
    rows: tuple[Row, ...]
    references: Mapping[int, Row]
    utility_loss: float = 0.05

    def labels(self) -> list[str]:
        """Scores, random first."""
        found = dict.fromkeys(label_of(row) for row in self.rows if row["score"] != "none")
        return sorted(found, key=lambda label: label != "random")

    def densities(self, label: str) -> list[float]:
        """Those that a score was run with."""
        return sorted({row["density"] for row in self.rows if label_of(row) == label})

    def chosen(self, label: str, density: float) -> dict[int, Row]:
        """Seed -> row, at the learning rate that most seeds were run with; of several, the one that the first seed chooses."""
        same = [row for row in self.rows if label_of(row) == label and row["density"] == density]
        rates: dict[float, dict[int, Row]] = {}
        for row in same:
            rates.setdefault(row["learning_rate"], {})[row["seed"]] = row
        if not rates:
            return {}
        most = max(map(len, rates.values()))
        candidates = {rate: rows for rate, rows in rates.items() if len(rows) == most}
        return candidates[min(candidates, key=lambda rate: self._shortfall(candidates[rate]))]

    def rates(self, label: str, density: float) -> list[float]:
        """Learning rates that were tried."""
        return sorted({r["learning_rate"] for r in self.rows if label_of(r) == label and r["density"] == density})

    def at_edge(self, label: str, density: float) -> bool:
        """Whether the chosen learning rate is the lowest or the highest that was tried."""
        rates = self.rates(label, density)
        [rate] = {row["learning_rate"] for row in self.chosen(label, density).values()}
        return rate in (rates[0], rates[-1])

    def reached(self, row: Row) -> bool:
        """Whether a run forgot, and lost no utility."""
        reference = self.references[row["seed"]]
        return (
            "failed" not in row
            and row["forget"] <= row["goal"]
            and all(row[name] >= reference[name] - self.utility_loss for name in ("retain", "held_out"))
        )

    def robust(self, row: Row) -> bool:
        """Whether a run forgot and is no worse than all weights: in what it keeps, after relearning and in 4 bits."""
        dense = self.chosen("all weights", 1.0).get(row["seed"])
        if "failed" in row or row["forget"] > row["goal"] or "relearned" not in row:
            return False
        if dense is None or "relearned" not in dense:
            return False
        reference = self.references[row["seed"]]
        return (
            all(row[n] >= min(reference[n], dense[n]) - self.utility_loss for n in ("retain", "held_out"))
            and row["relearned"] <= dense["relearned"] + CLOSE
            and row["quantized"]["4"]["forget"] <= dense["quantized"]["4"]["forget"] + CLOSE
        )

    def smallest(self, label: str, seed: int, robust: bool) -> float | None:
        """The smallest density at which a score reaches the goal on a seed; None if at none."""
        holds = self.robust if robust else self.reached
        for density in self.densities(label):
            row = self.chosen(label, density).get(seed)
            if row is not None and holds(row):
                return density
        return None

    def tried(self, label: str, seed: int) -> list[float]:
        """Densities that a score was run with on a seed, at the learning rate that counts."""
        return [density for density in self.densities(label) if seed in self.chosen(label, density)]

    def seeds(self) -> list[int]:
        """Those that any row has."""
        return sorted({row["seed"] for row in self.rows} & set(self.references))

    def _shortfall(self, rows: Mapping[int, Row]) -> float:
        """On the first seed, which chooses the learning rates."""
        seed = min(rows)
        masked = rows[seed]["score"] != "none"
        dense = self.chosen("all weights", 1.0) if masked else {}
        return shortfall(rows[seed], self.references[seed], self.utility_loss, dense.get(seed))


def shortfall(row: Row, reference: Row, utility_loss: float, dense: Row | None = None) -> float:
    """How far a run is from the goal, as shares of what the reference model knows; infinite where it failed.

    Args:
        row, reference: of the run and of its reference model.
        utility_loss: what retained and unseen answers may lose.
        dense: of the run with all weights, where there is one. What it lost, a mask may lose, too.
    """
    if "failed" in row:
        return math.inf
    left, lost = row["forget"] / reference["forget"], 0.0
    missing = max(0.0, left - row["goal"] / reference["forget"])
    for name in ("retain", "held_out"):
        floor = reference[name]
        if dense is not None and "failed" not in dense:
            floor = min(floor, dense[name])
        lost += max(0.0, 1 - row[name] / reference[name])
        missing += max(0.0, floor - utility_loss - row[name]) / reference[name]
    return missing + 0.1 * (left + lost)


def groups(content: Mapping[str, Any], utility_loss: float = 0.05) -> list[Group]:
    """The rows of results.json by model, task and objective."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in content["rows"]:
        found.setdefault((row["model"], row["task"], row["objective"]), []).append(row)
    return [
        Group(
            *key,
            tuple(rows),
            {r["seed"]: r for r in content["references"] if (r["model"], r["task"]) == key[:2]},
            utility_loss,
        )
        for key, rows in found.items()
    ]
