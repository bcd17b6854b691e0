"""How often the 95 % interval of one run covers the true value: clustered rows, few groups, shares near their bounds."""

import numpy as np
import pytest
from scipy.special import expit

from wagle_trainer.reporting import example_interval

RUNS = 250


def covered(level: float, spread: float, groups: int, rows: int) -> float:
    """Share of the runs whose interval holds the mean over all groups that could have been drawn."""
    random = np.random.default_rng(groups)

    def draw(number):
        return expit(level + spread * (random.normal(size=(number, 1)) + random.normal(size=(number, rows))))

    true, hits = draw(100_000).mean(), 0
    for _ in range(RUNS):
        values = draw(groups).ravel()
        columns = {"probability": values, "group": np.repeat(np.arange(groups), rows)}
        result = {"forget_Q_A_Prob": values.mean(), "per_example": {"forget": columns}}
        found = example_interval(result, "forget_Q_A_Prob")
        hits += found.low <= true <= found.high
    return hits / RUNS


@pytest.mark.parametrize(
    ("level", "spread", "groups", "rows"),
    [
        (0.0, 1.0, 2, 20),
        (-4.0, 1.5, 2, 20),
        (0.0, 1.0, 3, 20),
        (-4.0, 1.5, 3, 20),
        (0.0, 1.0, 5, 20),
        (3.0, 1.0, 5, 20),
        (0.0, 1.0, 20, 20),  # TOFU's forget10
        (-4.0, 1.5, 10, 20),  # forgotten: most answers near zero, few not
        (-4.0, 1.5, 20, 20),
        (3.0, 1.0, 20, 5),
        (0.0, 1.0, 100, 1),  # independent rows
    ],
)
def test_coverage(level, spread, groups, rows):
    # 93 to 97 %, and two standard errors of what is measured here
    assert 0.93 - 0.03 <= covered(level, spread, groups, rows) <= 0.97 + 0.02


@pytest.mark.parametrize(("groups", "width"), [(3, 0.35), (20, 0.1)])
def test_few_groups_make_wide_intervals(groups, width):
    """The two numbers of docs/reference/metrics.md."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(50):
        values = expit(random.normal(size=(groups, 1)) + random.normal(size=(groups, 20))).ravel()
        columns = {"probability": values, "group": np.repeat(np.arange(groups), 20)}
        interval = example_interval(
            {"forget_Q_A_Prob": values.mean(), "per_example": {"forget": columns}}, "forget_Q_A_Prob"
        )
        found.append((interval.high - interval.low) / 2)
    assert np.median(found) == pytest.approx(width, rel=0.15)


def test_rows_as_if_they_were_independent_cover_too_little():
    """Why groups count: without them the interval is half as wide as it should be."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(RUNS):
        values = expit(random.normal(size=(20, 1)) + 0.3 * random.normal(size=(20, 20))).ravel()
        result = {"forget_Q_A_Prob": values.mean(), "per_example": {"forget": {"probability": values}}}
        found = example_interval(result, "forget_Q_A_Prob")
        hits += found.low <= 0.5 <= found.high
    assert hits / RUNS < 0.6
