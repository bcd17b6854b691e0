"""Retain losses against their formulas, in float64 and on single unpadded examples: values and gradients."""

import math

import pytest
import torch

from wagle_trainer.losses.retain import (
    RETAIN_LOSSES,
    check_retain_loss,
    embedding_difference,
    js_to_reference,
    kl_to_reference,
    nll,
)
from wagle_trainer.models.log_probs import token_log_probs

CPU = torch.device("cpu")


def kl(now, then):
    p, p_ref = now.logits.softmax(-1), then.logits.softmax(-1)
    return sum((p_ref[t] * (p_ref[t] / p[t]).log()).sum() for t in range(len(p))) / len(p)


def js(now, then):
    p, p_ref = now.logits.softmax(-1), then.logits.softmax(-1)
    middle = (p + p_ref) / 2
    return ((p * (p / middle).log()).sum(-1) + (p_ref * (p_ref / middle).log()).sum(-1)).mean() / 2


# name: (loss of a batch and its rows, formula of one example now and before)
CASES = {
    "nll": (lambda world, retain, rows: nll(retain), lambda now, then: -now.log_p.mean()),
    "kl": (lambda world, retain, rows: kl_to_reference(retain, world.head.logits(rows, CPU)), kl),
    "js": (lambda world, retain, rows: js_to_reference(retain, world.head.logits(rows, CPU)), js),
    "embed_diff": (
        lambda world, retain, rows: embedding_difference(retain, world.states.states(rows, CPU)),
        lambda now, then: ((now.states - then.states) ** 2).mean(),
    ),
}


def test_every_retain_loss_has_an_oracle():
    assert set(CASES) == set(RETAIN_LOSSES)


@pytest.mark.parametrize("case", CASES)
def test_retain_loss(case, world):
    loss, formula = CASES[case]

    def losses_of(size, side):
        return [loss(world, retain, rows) for rows, retain in world.retained(size, side)]

    expected = [formula(now, then) for now, then in world.forget]
    assert min(expected) > 0.01
    assert case != "js" or max(expected) < math.log(2)
    world.assert_same_for_all_paddings(losses_of, expected)


@pytest.mark.parametrize("divergence", [kl_to_reference, js_to_reference])
def test_divergence_from_oneself_is_zero_and_flat(divergence, world):
    for _, retain in world.retained(world.number, "left"):
        losses = divergence(retain, retain.label_logits().detach())
        torch.testing.assert_close(losses, torch.zeros(world.number), rtol=0, atol=1e-5)
        assert world.gradients(losses).abs().max() < 1e-4


def test_an_example_without_labels_costs_nothing(world, pad_batches):
    first, second = world.sets["forget"][:2]
    rows = [first, ([5, 6, 7], [-100] * 3), second]
    retain = token_log_probs(world.model, pad_batches(rows, 3)[0], keep_logits=True)
    for losses in (nll(retain), kl_to_reference(retain, torch.zeros_like(retain.label_logits()))):
        assert losses[1] == 0
        assert bool((losses[[0, 2]] > 0).all())
    only = token_log_probs(world.model, pad_batches(rows[1:2], 1)[0])
    assert world.gradients(nll(only)).abs().max() == 0  # but there is one to propagate


def test_unknown_retain_loss():
    for known in (*RETAIN_LOSSES, None):
        check_retain_loss(known)
    with pytest.raises(ValueError, match="Unknown retain_loss 'KL'. Known: nll, kl, js, embed_diff, or None"):
        check_retain_loss("KL")
