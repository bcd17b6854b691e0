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
        (
            {"score": "answer_rows"},
            "'answer_rows' ranks rows of the output head, which embeddings='last' leaves out",
        ),
        ({"embeddings": "sometimes"}, "embeddings is one of last, never, always"),
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


def test_the_objective_aims_at_the_goal():
    assert ForgetSettings(forget_goal=0.2).objective_arguments() == {
        "beta": 4.0,
        "length_normalized": True,
        "target": 0.2,
    }


def test_neighbours_by_size_of_the_forget_set():
    settings = ForgetSettings()
    assert [settings.number_of_neighbours(rows) for rows in (1, 20, 1000)] == [192, 240, 480]
    assert ForgetSettings(neighbours=20).number_of_neighbours(40) == 20


def test_settings_of_another_run_do_not_fix_the_aim():
    """config.yaml holds what was given, so another goal moves the target, too."""
    written = ForgetSettings().as_dict()
    assert written["loss_kwargs"] is None
    assert ForgetSettings(**written | {"forget_goal": 0.3}).objective_arguments()["target"] == 0.3
    assert ForgetSettings(loss_kwargs={"beta": 1.0}).objective_arguments() == {"beta": 1.0}
