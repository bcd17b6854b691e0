"""The rule within a try, on levels that are only written down."""

import pytest

from wagle_trainer.forgetting import ForgetSettings
from wagle_trainer.forgetting.course import Course
from wagle_trainer.forgetting.levels import Levels, Yardstick

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BEFORE = Levels({"forget": [1.0], "retain": [0.8], "unseen": [0.8]})


def levels(forget, retain=0.8, unseen=0.8):
    """As `Yardstick.check`: retain and unseen set are measured where the goal of 0.1 is met."""
    found = {"forget": [forget]}
    return Levels(found if forget > 0.1 else found | {"retain": [retain], "unseen": [unseen]})


@pytest.fixture
def course():
    """Half of the goal, 0.05, in half of 16 looks: a fall to 0.69 of the value at each."""
    return Course(Yardstick(None, {}, BEFORE, ForgetSettings()), RATES, 1e-3, 16)


def test_a_rate_that_does_nothing_rises_by_two_rungs_and_a_slow_one_by_one(course):
    assert course.after(levels(0.99)) == 4e-3
    assert course.after(levels(0.99 * 0.8)) == 4e-3  # under way, and too slow for the first time
    assert course.after(levels(0.99 * 0.8**2)) == 8e-3


def test_before_it_is_under_way_one_slow_look_is_enough():
    steady = Course(Yardstick(None, {}, BEFORE, ForgetSettings()), RATES, 1e-3, 60)
    assert steady.after(levels(0.92)) == 2e-3  # the pace is 0.905


def test_a_rate_that_keeps_pace_stays(course):
    assert [course.after(levels(0.6**look)) for look in (1, 2, 3, 4)] == [1e-3] * 4


def test_it_ends_where_the_highest_rate_does_nothing(course):
    assert course.after(levels(0.99)) == 4e-3
    assert course.after(levels(0.99)) == 8e-3
    assert course.after(levels(0.99)) == 8e-3
    assert course.after(levels(0.99)) is None


def test_it_ends_with_room_to_spare(course):
    assert course.after(levels(0.08)) == 1e-3 and course.good
    assert course.after(levels(0.05)) is None and course.good


def test_it_ends_one_look_after_goal_and_floor_are_met(course):
    assert course.after(levels(0.08)) == 1e-3
    assert course.after(levels(0.07)) is None and course.good


def test_a_good_state_that_is_lost_ends_it(course):
    assert course.after(levels(0.08)) == 1e-3
    assert course.after(levels(0.07, unseen=0.7)) is None and not course.good and course.reached


def test_below_the_floor_it_goes_on_as_long_as_it_recovers_and_the_rate_falls_where_it_does_not(course):
    assert course.after(levels(0.99)) == 4e-3
    assert course.after(levels(0.08, unseen=0.60)) == 4e-3
    assert course.after(levels(0.08, unseen=0.65)) == 4e-3
    assert course.after(levels(0.08, unseen=0.65)) == 2e-3
    assert course.after(levels(0.08, unseen=0.64)) == 1e-3
    assert course.after(levels(0.08, unseen=0.65)) is None
    assert course.rates[course.highest] == 4e-3


def test_what_is_lost_altogether_ends_it(course):
    assert course.after(levels(0.01, retain=0.3)) is None
