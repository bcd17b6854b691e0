import subprocess
import sys
from collections import Counter

import pytest

from wagle_trainer.data.refusals import REFUSALS, refusal_for


def test_refusals_are_many_and_different():
    assert len(REFUSALS) >= 50
    assert len({refusal.lower() for refusal in REFUSALS}) == len(REFUSALS)
    assert all(refusal == refusal.strip() and refusal.endswith(".") for refusal in REFUSALS)


def test_every_refusal_is_drawn_about_equally_often():
    counts = Counter(refusal_for(index, seed=3) for index in range(100 * len(REFUSALS)))
    assert set(counts) == set(REFUSALS)
    assert max(counts.values()) < 150  # five standard deviations above the mean of 100
    assert min(counts.values()) > 50


def test_index_and_seed_both_matter():
    draws = {seed: [refusal_for(index, seed) for index in range(40)] for seed in (0, 1, 11)}
    assert len({tuple(draw) for draw in draws.values()}) == 3
    assert len(set(draws[0])) > 10


def test_draw_is_the_same_in_every_process():
    # Python salts hash() anew per process: a draw that depended on it would differ. The literal also pins other
    # versions of Python to the same draws.
    code = (
        "from wagle_trainer.data.refusals import refusal_for\n"
        "print(*(refusal_for(i, 7, 'abcdefgh') for i in range(20)))"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    assert results == {b"f a f a a f f a d c e a b b c a c a h b\n"}


def test_own_refusals():
    assert {refusal_for(index, 0, ["no", "never"]) for index in range(20)} == {"no", "never"}
    with pytest.raises(ValueError, match="no refusals"):
        refusal_for(0, 0, [])
