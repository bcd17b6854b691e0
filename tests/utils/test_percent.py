"""Shares in percent, however small."""

import pytest

from wagle_trainer.utils.percent import percent


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.05, "5%"),
        (1 / 3, "33.3%"),
        (1.0, "100%"),
        (0.0, "0%"),
        (1e-5, "0.001%"),
        (1e-7, "0.00001%"),
        (0.9996, ">99.9%"),
        (0.8, "80%"),
        (1345 / 134_515_008, "0.001%"),
    ],
)
def test_percent(share, text):
    assert percent(share) == text
