"""Two models, two sets, and one example read at a time: what the formulas of papers are written in."""

from types import SimpleNamespace

import pytest
import torch

from wagle_trainer.losses import LossInputs
from wagle_trainer.models.architecture import decoder_layer
from wagle_trainer.models.log_probs import token_log_probs
from wagle_trainer.models.reference_log_probs import (
    ReferenceLogits,
    ReferenceStates,
    align,
    reference_log_probs,
)

CPU = torch.device("cpu")
# Size and side: one batch, one with padding before, ragged ones, and none at all.
PADDINGS = [(7, "right"), (7, "left"), (3, "left"), (1, "right")]


class World:
    """The model that is trained and the reference model (dropout is off), a forget set of seven examples
    and their chosen answers. Some prompts are longer than other whole examples, so that batches are ragged on both
    sides of the answer.

    Attributes:
        model, before: the two models.
        layer: index of the decoder layer that is looked at.
        forget, chosen: (now, before) of each example, in float64 and from a forward pass of its own.
    """

    number, layer = 7, 0

    def __init__(self, model, before, examples, others, pad_batches, as_batches):
        self.model, self.before = model, before
        self.sets = {"forget": examples, "chosen": others}
        self.pad_batches = pad_batches
        batches = {split: as_batches(rows, 3) for split, rows in self.sets.items()}
        self.log_probs = {
            split: reference_log_probs(before, part, self.number, CPU) for split, part in batches.items()
        }
        self.logits = ReferenceLogits(before, batches["forget"], CPU)
        self.states = ReferenceStates(before, decoder_layer(before, self.layer, ""), batches["forget"], CPU, "")
        with torch.no_grad():
            self.then = {split: [self.read(before, *row) for row in rows] for split, rows in self.sets.items()}

    def read(self, model, ids, labels):
        """What the formulas read of one example."""
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        places = [t for t in range(1, len(ids)) if labels[t] != -100]
        logits = output.logits[0, [t - 1 for t in places]].double()
        targets = torch.tensor([labels[t] for t in places])
        return SimpleNamespace(
            logits=logits,
            targets=targets,
            log_p=logits.log_softmax(-1)[range(len(places)), targets],
            states=output.hidden_states[self.layer + 1][0, places].double(),
        )

    def both(self, split):
        return [
            (self.read(self.model, *row), then) for row, then in zip(self.sets[split], self.then[split], strict=True)
        ]

    @property
    def forget(self):
        return self.both("forget")

    @property
    def chosen(self):
        return self.both("chosen")

    def loss_inputs(self, needs, size, side):
        """What the trainer gives a forget loss, batch by batch."""
        layer = decoder_layer(self.model, self.layer, "") if "forget_states" in needs else None
        batches = {split: self.pad_batches(rows, size, side) for split, rows in self.sets.items()}
        for index, rows in enumerate(torch.arange(self.number).split(size)):
            inputs = LossInputs(rows=rows)
            if "forget" in needs:
                keep = "forget_logits" in needs
                inputs.forget = token_log_probs(self.model, batches["forget"][index], keep_logits=keep, layer=layer)
            if "chosen" in needs:
                inputs.chosen = token_log_probs(self.model, batches["chosen"][index])
            if "reference" in needs:
                for split in {"forget", "chosen"} & set(needs):
                    values = self.log_probs[split][rows]
                    setattr(inputs, f"{split}_reference", values.sum(-1))
                    setattr(inputs, f"{split}_reference_tokens", align(values, getattr(inputs, split).mask))
            if "forget_reference_logits" in needs:
                inputs.forget_reference_logits = self.logits.values(rows.tolist(), CPU)
            if "forget_reference_states" in needs:
                inputs.forget_reference_states = self.states.values(rows.tolist(), CPU)
            yield inputs

    def retain_inputs(self, size, side):
        """What the trainer gives a retain loss, batch by batch: all that it could need of the first set."""
        layer = decoder_layer(self.model, self.layer, "")
        batches = self.pad_batches(self.sets["forget"], size, side)
        for rows, batch in zip(torch.arange(self.number).split(size), batches, strict=True):
            yield LossInputs(
                retain=token_log_probs(self.model, batch, keep_logits=True, layer=layer),
                retain_reference_logits=self.logits.values(rows.tolist(), CPU),
                retain_reference_states=self.states.values(rows.tolist(), CPU),
            )

    def gradients(self, losses):
        """Of a sum that tells the examples apart."""
        weights = torch.arange(1.0, len(losses) + 1)
        unused = {"allow_unused": True, "materialize_grads": True}  # RMU stops at a layer
        found = torch.autograd.grad((weights * losses).sum(), list(self.model.parameters()), **unused)
        return torch.cat([part.flatten() for part in found])

    def assert_same_for_all_paddings(self, losses_of, expected):
        """`losses_of(size, side)` -> losses of all examples: these values, and these gradients."""
        expected = torch.stack(expected)
        wanted = self.gradients(expected)
        assert wanted.norm() > 0
        for size, side in PADDINGS:
            losses = torch.cat(losses_of(size, side))
            torch.testing.assert_close(losses, expected.to(losses), rtol=3e-5, atol=3e-5)
            found = self.gradients(losses)
            torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5 * wanted.abs().max().item())


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request, make_llama, make_gpt2, make_examples, pad_batches, as_batches):
    make = make_llama if request.param == "llama" else make_gpt2
    sets = (make_examples(World.number, seed=seed, prompt=(1, 7), answer=(1, 6)) for seed in (3, 4))
    return World(make(seed=0).eval(), make(seed=1).eval(), *sets, pad_batches, as_batches)
