"""What is refused before anything is loaded."""

import pytest

from wagle_trainer.forgetting import ForgetSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"forget_goal": 0}, "forget_goal is a share"),
        ({"utility_floor": 1.2}, "utility_floor is a share"),
        ({"densities": (0.1, 0.01)}, "densities must be positive numbers that rise"),
        ({"densities": (0.1, 2.0)}, "at most 1"),
        ({"learning_rates": ()}, "learning_rates must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"neighbours": 3}, "neighbours must be at least 16"),
        ({"attacks": ("guessing",)}, "Unknown attack guessing"),
        ({"score": "guess"}, "Unknown attribution score 'guess'"),
        ({"loss_type": "guess"}, "guess"),
        ({"loss_type": "po"}, "loss_type='po' needs a chosen answer"),
        ({"loss_kwargs": {"gamma": 1}}, "do not fit the loss 'npo'"),
        ({"loss_kwargs": [1]}, "loss_kwargs are names and values"),
        ({"retain_weight": -1}, "retain_weight must be"),
        ({"known": 1.5}, "known is a probability"),
        ({"relearning_rate": 0}, "relearning_rate must be a positive number"),
    ],
)
def test_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ForgetSettings(**wrong)


def test_neighbours_by_size_of_the_forget_set():
    settings = ForgetSettings()
    assert [settings.number_of_neighbours(rows) for rows in (1, 40, 1000)] == [96, 240, 480]
    assert ForgetSettings(neighbours=20).number_of_neighbours(40) == 20
