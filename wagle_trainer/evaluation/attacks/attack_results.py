"""The result of an attack: its recovery rates, and whether they have a meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wagle_trainer.evaluation.attacks.attack import Point, get_attack, recovery_rate

# A recovery rate divides by what was forgotten. Below this share of what was known, or below this difference of a
# measure in [0, 1], rounding and chance alone make it large: then there is none.
_LITTLE, _NOISE = 0.05, 0.01
_SHARES = ("probability", "rouge_l_recall")


def attack_result(name: str, points: Sequence[Point], settings: dict[str, Any]) -> dict[str, Any]:
    """The result of one attack as `run_attacks` returns it; without points where nothing was forgotten.

    Args:
        name: of the attack.
        points: what it returned.
        settings: what was used.
    """
    headline = next(iter(points[0].before))
    kept = [(point, raw) for point in points if (raw := _rate(point, headline)) is not None]
    first = kept[0][0] if kept else points[0]
    warning = _warning([point for point, _ in kept], headline)
    entries: list[dict[str, Any]] = [
        {
            "x": point.x,
            "forget": point.values[headline],
            "recovered": None if warning is not None else min(1.0, max(0.0, raw)),
            "recovered_raw": raw,
            "before": point.before[headline],
            "after": point.after[headline],
            "measures": dict(point.values),
            "recovered_by_measure": {measure: _rate(point, measure) for measure in point.values},
        }
        for point, raw in kept
    ]
    return {
        "attack": name,
        "unit": get_attack(name).unit,  # type: ignore[attr-defined]
        "baseline": first.after[headline],
        "before": first.before[headline],
        "points": entries,
        "recovered": None if warning is not None else max((entry["recovered"] for entry in entries), default=0.0),
        "warning": warning,
        "settings": settings | {"measure": headline},
    }


def _rate(point: Point, measure: str) -> float | None:
    """The recovery rate by one measure; None where, by this measure, nothing was forgotten."""
    before, after = point.before[measure], point.after[measure]
    return None if after >= before else recovery_rate(before, after, point.values[measure])


def _warning(points: Sequence[Point], measure: str) -> str | None:
    """Why the recovery rates have no meaning; None if they have one."""
    for point in points:
        before, after = point.before[measure], point.after[measure]
        if before - after < max(_LITTLE * abs(before), _NOISE if measure in _SHARES else 0.0):
            return (
                f"so little was forgotten by the measure {measure} (from {before:.3g} to {after:.3g}) that a recovery rate "
                "has no meaning: chance or rounding alone can make it large. Compare what the models know instead."
            )
    return None


def read_attack(attack: Mapping[str, Any]) -> dict[str, Any]:
    """The result of one attack under the present names; files of earlier versions have others.

    Args:
        attack: what an attack returned, or what a file holds of it.
    """
    renamed = {key.replace("came_back", "recovered"): value for key, value in attack.items()}
    points = renamed.get("points")
    if isinstance(points, Sequence):
        if not all(isinstance(point, Mapping) for point in points):
            raise ValueError(f"The points of the attack {renamed.get('attack')!r} are not what run_attacks returned.")
        renamed["points"] = [
            {key.replace("came_back", "recovered"): value for key, value in point.items()} for point in points
        ]
    return {"warning": None, **renamed}


def check_attack(attack: Mapping[str, Any], where: str) -> None:
    """Refuse a result that a report cannot show.

    Args:
        attack: what `read_attack` returned.
        where: name of the attack's place, for the error.

    Raises:
        ValueError: an entry is missing or of another type; the message names it.
    """
    if not ({"attack", "baseline", "points", "recovered"} <= set(attack) and attack["points"]):
        raise ValueError(
            f"{where} has no 'attack', 'baseline', 'recovered' or 'points': pass what run_attacks returned."
        )
    settings = attack.get("settings", {})
    points = attack["points"] if isinstance(attack["points"], list) else [None]
    checks = {
        "attack": isinstance(attack["attack"], str),
        "baseline": _is_number(attack["baseline"]),
        "before": _is_number(attack.get("before", 0)),
        "recovered": attack["recovered"] is None or _is_number(attack["recovered"]),
        "points": all(isinstance(point, Mapping) for point in points),
        "settings": isinstance(settings, Mapping) and isinstance(settings.get("measure", ""), str),
    }
    for index, point in enumerate(points if checks["points"] else []):
        checks[f"points[{index}]['x']"] = isinstance(point.get("x"), str) or _is_number(point.get("x"))
        checks[f"points[{index}]['forget']"] = _is_number(point.get("forget"))
        recovered = point.get("recovered", "missing")
        checks[f"points[{index}]['recovered']"] = recovered is None or _is_number(recovered)
    wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise ValueError(f"{where} is not what run_attacks returned: {wrong[0]} is missing or of another type.")


def _is_number(value: Any) -> bool:
    """Whether this is a number that a float can hold; `check_finite` names those that are not finite."""
    if isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15
