"""Every way to find what is not finite, on tensors where exactly one is."""

import math

import pytest
import torch
from torch import nn

from wagle_trainer.models.not_finite import (
    cause_of_not_finite,
    first_batch_not_finite,
    first_parameter_not_finite,
    is_finite,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_is_finite(dtype, value):
    tensor = torch.ones(3, 5, dtype=dtype)
    assert is_finite(tensor)
    tensor[1, 2] = value
    assert not is_finite(tensor)
    assert is_finite(torch.empty(0, dtype=dtype))


def test_parameters_and_the_cause_in_words():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert first_parameter_not_finite(model) is None
    assert cause_of_not_finite(model) == "all weights are finite, so the model overflows on this batch"
    with torch.no_grad():
        model[0].weight[1, 0] = model[1].bias[0] = math.nan
    assert first_parameter_not_finite(model) == "0.weight"
    assert cause_of_not_finite(model) == "the weights of '0.weight' are not finite"


def test_the_first_batch():
    batches = [{"x": torch.tensor(x)} for x in (1.0, 2.0, 0.0, 0.0)]
    assert first_batch_not_finite(batches, lambda batch: [batch["x"], 1 / batch["x"]]) == 2
    assert first_batch_not_finite(batches[:2], lambda batch: [1 / batch["x"]]) is None
