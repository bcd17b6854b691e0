"""Retain losses against their formulas, in float64 and on single unpadded examples: values and gradients."""

import doctest
import math

import pytest
import torch

from wagle_trainer.losses import LossInputs, RetainLoss, get_retain_loss, list_retain_losses, register_retain_loss
from wagle_trainer.losses import retain_loss as registry
from wagle_trainer.models.log_probs import TokenLogProbs, token_log_probs


def kl(now, then):
    p, p_ref = now.logits.softmax(-1), then.logits.softmax(-1)
    return sum((p_ref[t] * (p_ref[t] / p[t]).log()).sum() for t in range(len(p))) / len(p)


def js(now, then):
    p, p_ref = now.logits.softmax(-1), then.logits.softmax(-1)
    middle = (p + p_ref) / 2
    return ((p * (p / middle).log()).sum(-1) + (p_ref * (p_ref / middle).log()).sum(-1)).mean() / 2


# name: formula of one example under the model and the reference model
FORMULAS = {
    "nll": lambda now, then: -now.log_p.mean(),
    "kl": kl,
    "js": js,
    "embed_diff": lambda now, then: ((now.states - then.states) ** 2).mean(),
}


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch):
    monkeypatch.setattr(registry._retain_losses, "_entries", dict(registry._retain_losses._entries))


def test_every_retain_loss_has_an_oracle():
    built_in = {n for n in list_retain_losses() if get_retain_loss(n).__module__.startswith("wagle_trainer.")}
    assert set(FORMULAS) == built_in


@pytest.mark.parametrize("name", FORMULAS)
def test_retain_loss(name, world):
    loss = get_retain_loss(name)()

    def losses_of(size, side):
        return [loss.retain_loss(inputs) for inputs in world.retain_inputs(size, side)]

    expected = [FORMULAS[name](now, then) for now, then in world.forget]
    assert min(expected) > 0.01
    assert name != "js" or max(expected) < math.log(2)
    world.assert_same_for_all_paddings(losses_of, expected)


@pytest.mark.parametrize("name", ["kl", "js"])
def test_divergence_from_oneself_is_zero_and_flat(name, world):
    for inputs in world.retain_inputs(world.number, "left"):
        inputs.retain_reference_logits = inputs.retain.target_logits().detach()
        losses = get_retain_loss(name)().retain_loss(inputs)
        torch.testing.assert_close(losses, torch.zeros(world.number), rtol=0, atol=1e-5)
        assert world.gradients(losses).abs().max() < 1e-4


def test_an_example_without_target_tokens_costs_nothing(world, pad_batches):
    first, second = world.sets["forget"][:2]
    rows = [first, ([5, 6, 7], [-100] * 3), second]
    retain = token_log_probs(world.model, pad_batches(rows, 3)[0], keep_logits=True)
    inputs = LossInputs(retain=retain, retain_reference_logits=torch.zeros_like(retain.target_logits()))
    for name in ("nll", "kl"):
        losses = get_retain_loss(name)().retain_loss(inputs)
        assert losses[1] == 0
        assert bool((losses[[0, 2]] > 0).all())
    only = LossInputs(retain=token_log_probs(world.model, pad_batches(rows[1:2], 1)[0]))
    nll = get_retain_loss("nll")().retain_loss(only)
    assert world.gradients(nll).abs().max() == 0  # but there is one to propagate


def test_the_example_of_ones_own():
    names = {"__name__": "example", "RetainLoss": RetainLoss, "register_retain_loss": register_retain_loss}
    test = doctest.DocTestFinder(recurse=False).find(RetainLoss, globs=names)[0]
    assert test.examples
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    answers = TokenLogProbs(torch.tensor([[-1.0, -3.0], [-9.0, -9.0]]), torch.ones(2, 2, dtype=torch.bool))
    inputs = LossInputs(retain=answers, retain_reference=torch.tensor([-5.0, -10.0]))
    assert get_retain_loss("hinge")().retain_loss(inputs).tolist() == [0.0, 8.0]


def test_unknown_retain_loss():
    with pytest.raises(ValueError, match=r"Unknown retain loss 'KL'\..* Known: embed_diff, js, kl, nll"):
        get_retain_loss("KL")


def test_a_loss_without_formula_says_so():
    with pytest.raises(NotImplementedError, match="RetainLoss must define retain_loss"):
        RetainLoss().retain_loss(LossInputs())
