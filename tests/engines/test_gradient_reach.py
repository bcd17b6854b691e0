"""Parameters that a loss depends on are told from those that it does not, by the graph of the backward pass.

`tests/test_distributed.py` trains where engines would give the latter zeros for gradients.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wagle_trainer.engines.gradient_reach import GradientReach


class Chain(nn.Module):
    """Four layers, the last with the weight of the first; one that never runs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3, bias=index == 1) for index in range(3))
        self.tied, self.idle = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.tied.weight = self.layers[0].weight
        self.layers[1].bias.requires_grad_(False)

    def forward(self, x):
        return [x := layer(x) for layer in (*self.layers, self.tied)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Chain()


@pytest.fixture
def reach(model):
    return GradientReach(model)


def run(model, reach, last):
    """Add a loss that stops at a layer."""
    with reach.recording():
        loss = model(torch.ones(2, 3))[last].sum()
    reach.add(loss)
    return loss


# A frozen parameter has no gradient in any case; what did not run is not known.
@pytest.mark.parametrize(
    ("last", "unreached"),
    [
        (0, {"layers.1.weight", "layers.2.weight", "layers.1.bias"}),
        (1, {"layers.2.weight"}),
        (2, set()),
        (3, set()),
    ],
)
def test_layers_above_the_loss_are_not_reached(model, reach, last, unreached):
    loss = run(model, reach, last)
    assert reach.unreached - {"layers.1.bias"} == unreached - {"layers.1.bias"}
    loss.backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert missing - {"layers.1.bias", "idle.weight"} == reach.unreached - {"layers.1.bias"}


def test_the_tied_weight_alone(model, reach):
    """It is reached by its first use or by its second."""
    with reach.recording():
        first = model(torch.ones(2, 3))[1].detach()
        loss = model.tied(first).sum()
    reach.add(loss)
    assert reach.unreached >= {"layers.1.weight", "layers.2.weight"}
    assert "layers.0.weight" not in reach.unreached


def test_all_losses_of_a_step_count_and_the_the_next_step_forgets_them(model, reach):
    run(model, reach, 2)
    run(model, reach, 0)
    assert "layers.2.weight" not in reach.unreached
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    reach.drop_gradients()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name != "layers.1.bias")
    run(model, reach, 0)
    reach.drop_gradients()
    assert model.layers[1].weight.grad is None
    assert model.layers[2].weight.grad is None
    assert model.layers[0].weight.grad is not None
    assert model.idle.weight.grad is not None


def test_parts_of_a_longer_tensor(reach, model):
    """As FSDP1 shows them: one is reached, its neighbour is not."""
    flat = torch.randn(18, requires_grad=True)
    one, other = (part.view(3, 3) for part in flat.split(9))
    for index, part in ((1, one), (2, other)):
        del model.layers[index].weight
        model.layers[index].weight = part
    run(model, reach, 1)
    assert reach.unreached >= {"layers.2.weight"}
    assert "layers.1.weight" not in reach.unreached


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(model, reach, use_reentrant):
    """What the graph hides counts as reached."""
    with reach.recording():
        start = torch.ones(2, 3, requires_grad=True)
        middle = checkpoint(model.layers[0], start, use_reentrant=use_reentrant)
        checkpoint(model.layers[2], middle, use_reentrant=use_reentrant)
    reach.add(middle.sum())
    assert "layers.0.weight" not in reach.unreached
    assert ("layers.2.weight" in reach.unreached) is not use_reentrant


def test_no_hooks_are_left(model, reach):
    run(model, reach, 3)
    assert not any(module._forward_hooks for module in model.modules())
