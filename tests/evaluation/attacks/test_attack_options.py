"""Options in the types of an attack's signature; tests/cli/test_attack.py has those of the registered attacks."""

from collections.abc import Sequence
from functools import partial

import pytest

from wagle_trainer.evaluation.attacks.attack_options import checked_options


def attack(target, *, bits: Sequence[int] = (8,), share: float | None = None):
    return []


def test_a_single_value_becomes_a_list_and_others_are_checked():
    assert checked_options("a", attack, {"bits": 4, "share": 1}) == {"bits": [4], "share": 1}
    with pytest.raises(ValueError, match="The option share of the attack 'a' must be a number or null, not 'x'"):
        checked_options("a", attack, {"share": "x"})


def test_a_callable_without_annotations_takes_what_it_gets():
    assert checked_options("a", partial(attack, bits=(4,)), {"share": "x"}) == {"share": "x"}
