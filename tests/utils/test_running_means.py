import gc

import pytest
import torch
from accelerate import Accelerator

from wagle_trainer.utils.running_means import RunningMeans


def test_means_are_over_examples_and_begin_anew():
    means, accelerator = RunningMeans(), Accelerator(cpu=True)
    assert not means
    for batch in ([1.0, 2.0, 6.0], [7.0]):
        means.add("loss", torch.tensor(batch, requires_grad=True))
    means.add("other", torch.tensor([5.0]))
    assert means.take(accelerator) == pytest.approx({"loss": 4.0, "other": 5.0})
    assert not means
    means.add("loss", torch.tensor([3.0]))
    assert means.take(accelerator) == {"loss": 3.0}


def test_nothing_piles_up_where_no_one_asks():
    """As with logging_strategy="no": a long run would keep two small tensors of every batch."""
    means = RunningMeans()
    means.add("loss", torch.ones(2))
    before = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    for _ in range(100):
        means.add("loss", torch.ones(2))
    assert sum(type(thing) is torch.Tensor for thing in gc.get_objects()) <= before + 1
