"""Where the search for a learning rate begins, and the warning of one that suits all weights."""

import pytest

from wagle_trainer.attribution import starting_rate
from wagle_trainer.attribution.starting_rate import why_too_low
from wagle_trainer.utils.percent import percent


def test_all_weights_take_the_rate_that_suits_them():
    assert (
        starting_rate(1.0, None, 3e-5)
        == starting_rate(1.0, "random", 3e-5)
        == starting_rate(1.0, "snip", 3e-5)
        == 3e-5
    )


@pytest.mark.parametrize("score", ["random", "magnitude", "wanda"])
def test_weights_that_no_gradient_chose_share_the_step_of_all(score):
    assert starting_rate(1e-3, score, 1e-5) == pytest.approx(1e-2)


@pytest.mark.parametrize("score", ["gradient", "snip", "wagle", "fisher", "curvature", "answer_rows"])
def test_weights_with_large_gradients_need_less(score):
    assert starting_rate(1e-4, score, 1e-5) == pytest.approx(1e-3)


def test_a_score_function():
    assert starting_rate(0.01, lambda weight, forget_grad: forget_grad.abs(), 1e-5) == pytest.approx(1e-4)
    assert starting_rate(0.01, lambda weight: weight.abs(), 1e-5) == pytest.approx(1e-3)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got 0"):
        starting_rate(0, "random")
    with pytest.raises(ValueError, match="no_such_score"):
        starting_rate(0.1, "no_such_score")


@pytest.mark.parametrize(
    ("rate", "density", "score", "told"),
    [
        (2e-5, 0.8, "wagle", False),  # the paper's
        (2e-5, 0.01, "wagle", True),  # SFTConfig's default
        (1e-4, 0.01, "wagle", False),
        (1e-3, 0.001, "snip", False),
        (1e-3, 0.001, "random", True),
        (1e-4, 0.001, "a score of another machine", True),
    ],
)
def test_tells_of_rates_for_all_weights(rate, density, score, told):
    warning = why_too_low(rate, density, score)
    assert (warning is not None) == told
    if told:
        assert f"{rate:g}" in warning and percent(density) in warning
