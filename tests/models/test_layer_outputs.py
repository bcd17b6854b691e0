"""Hidden states are found in whatever a decoder layer returns."""

import pytest
import torch
from torch import nn

from wagle_trainer.models.log_probs import joint_token_log_probs, token_log_probs


class Returns(nn.Module):
    """A decoder layer that returns something else than the layer inside it."""

    def __init__(self, layer, form):
        super().__init__()
        self.layer, self.form = layer, form

    def forward(self, *args, **kwargs):
        self.states = self.layer(*args, **kwargs)
        return self.form(self.states)


class FirstStream(nn.Module):
    """What models with several streams do after their layers."""

    def __init__(self, layer, axis):
        super().__init__()
        self.layer, self.axis = layer, axis

    def forward(self, states, *args, **kwargs):
        states = states[0] if isinstance(states, tuple | list) else states
        return self.layer(states.select(self.axis, 0) if states.dim() == 4 else states, *args, **kwargs)


FORMS = {
    "tensor": (lambda h: h, lambda h: h, None),
    "tuple": (lambda h: (h, None), lambda h: h, None),
    "list": (lambda h: [h, "cache"], lambda h: h, None),
    "streams behind": (lambda h: torch.stack([h, 2 * h], 2), lambda h: torch.cat([h, 2 * h], -1), 2),
    "streams in front": (lambda h: torch.stack([h, 2 * h]), lambda h: torch.cat([h, 2 * h], -1), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form, make_llama, make_examples, pad_batches):
    returned, expected, axis = FORMS[form]
    model = make_llama().eval()
    layers = model.model.layers
    layers[0] = Returns(layers[0], returned)
    layers[1] = FirstStream(layers[1], axis or 0)
    batch = pad_batches(make_examples(3), 3)[0]
    states = token_log_probs(model, batch, layer=layers[0]).states
    assert torch.equal(states, expected(layers[0].states)[:, 1:])
    joint = joint_token_log_probs(model, {"forget": batch, "retain": batch}, layers={"retain": layers[0]})
    torch.testing.assert_close(joint["retain"].states, states)


@pytest.mark.parametrize("returned", [lambda h: h[0], lambda h: (None, h), lambda h: h.new_zeros(2, 2, 2, 2, 2)])
def test_what_is_not_found_is_refused(returned, make_llama, make_examples, pad_batches):
    model = make_llama().eval()
    layer = Returns(nn.Identity(), returned)
    model.model.norm = layer
    with pytest.raises(ValueError, match="The layer Returns returns an output .* are not found"):
        token_log_probs(model, pad_batches(make_examples(3), 3)[0], layer=layer)
