"""Small models with every kind of parameter, and changed copies of them."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Mixer(nn.Module):
    """Holds a three-dimensional parameter, as mixtures of experts do, and a scalar one."""

    def __init__(self, heads, width):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(heads, width, width) / math.sqrt(width))
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x + self.scale * torch.einsum("btd,hde->bte", x, self.experts)


class Net(nn.Module):
    """An embedding, a norm, linear layers of both orientations, an N-D parameter, biases, and a head, tied or not."""

    def __init__(self, vocabulary, width, heads, tied):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(width), Conv1D(2 * width, width), nn.GELU())])
        self.mixer = Mixer(heads, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=not tied)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.down(self.mixer(self.blocks[0](self.embedding(ids)))))


def bits_of(tensor):
    return tensor.detach().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.fixture(scope="session")
def same_bits():
    """same_bits(model, other): all parameters equal, compared as integers."""

    def compare(model, other):
        pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
        return all(n == m and torch.equal(bits_of(p), bits_of(q)) for (n, p), (m, q) in pairs)

    return compare


@pytest.fixture(scope="session")
def make_net():
    """make_net(...) -> a `Net` in evaluation mode, the same for the same arguments."""

    def make(seed=0, vocabulary=19, width=8, heads=2, tied=False, dtype=torch.float32):
        torch.manual_seed(seed)
        return Net(vocabulary, width, heads, tied).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def change():
    """change(model, density, seed, wild=False) -> (copy with about this share of its weights changed, the bool masks).

    Wild: the new values are any bits at all, such as NaNs with payloads, infinities and -0.0.
    """

    def make(model, density, seed, wild=False):
        generator = torch.Generator().manual_seed(seed)
        changed, masks = copy.deepcopy(model), {}
        with torch.no_grad():
            for name, parameter in changed.named_parameters():
                masks[name] = mask = torch.rand(parameter.shape, generator=generator) < density
                if wild:
                    ints = bits_of(parameter)
                    low, high = torch.iinfo(ints.dtype).min, torch.iinfo(ints.dtype).max
                    new = torch.randint(low, high, ints.shape, generator=generator, dtype=torch.int64).to(ints.dtype)
                    ints[mask] = torch.where(new == ints, ints ^ 1, new)[mask]
                else:
                    parameter += mask * (0.1 + torch.rand(parameter.shape, generator=generator)).to(parameter.dtype)
                    masks[name] = mask = bits_of(parameter) != bits_of(model.get_parameter(name))
        return changed, masks

    return make
