"""Patches that are trained in place, taken back, and put in again."""

import pytest
import torch

from wagle_trainer.adapters import AdapterMismatchError
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.forgetting import ForgetSettings
from wagle_trainer.forgetting.masks import masks_by_density, word_weights
from wagle_trainer.forgetting.patches import PatchedModel

SETTINGS = ForgetSettings(steps=4, check_every=2, batch_size=4, densities=(0.01, 0.1))
RATE = 1e-2


@pytest.fixture(scope="module")
def tokens(make_set, make_word_tokenizer):
    """Forget and retain set, tokenized."""
    qa = QAFormat.for_tokenizer(make_word_tokenizer())
    return [[qa.encode(row["prompt"], row["completion"].strip()) for row in make_set(8, seed=seed)] for seed in (0, 1)]


@pytest.fixture
def patched(make_llama):
    return PatchedModel(make_llama())


@pytest.fixture
def train(patched, tokens, word_tokenizer, tmp_path):
    """train(mask, look) trains a patch."""

    def run(mask, look=lambda: RATE):
        return patched.train(word_tokenizer, *tokens, mask, RATE, SETTINGS, tmp_path, look, lambda: None)

    return run


@pytest.fixture
def masks(patched, tokens):
    return masks_by_density(patched.model, *tokens, "snip", SETTINGS.densities)


def same(model, weights):
    return all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())


def test_masks_are_nested_and_of_the_requested_size(masks, patched):
    small, large = (masks[density] for density in SETTINGS.densities)
    total = sum(parameter.numel() for parameter in patched.model.parameters())
    assert (small.num_selected, large.num_selected) == (int(0.01 * total), int(0.1 * total))
    assert (small & large).num_selected == small.num_selected
    assert small.info.score == large.info.score == "snip" and large.info.requested_density == 0.1


def test_the_masks_are_those_of_attribute(masks, patched, tokens):
    from wagle_trainer import attribute
    from wagle_trainer.forgetting.masks import _batches

    alone = attribute(patched.model, _batches(tokens[0], 8), None, score="snip", density=0.1, progress=False)
    assert alone.digest == masks[0.1].digest


def test_word_weights_can_be_left_out(patched, tokens):
    names = word_weights(patched.model)
    assert "model.embed_tokens.weight" in names and len(names) <= 2
    found = masks_by_density(patched.model, *tokens, "curvature", SETTINGS.densities, embeddings=False)
    others = {name: p for name, p in patched.model.named_parameters() if name not in names}
    assert set(found[0.01]) == set(found[0.1]) == set(others)
    assert found[0.1].num_selected == int(0.1 * sum(p.numel() for p in others.values()))
    assert set(masks_by_density(patched.model, *tokens, "snip", (0.1,))[0.1]) == set(others) | set(names)


def test_a_negative_zero_is_a_zero(patched, tokens, monkeypatch):
    """`attribute` takes the sign off zeros, which would sort above all other scores; so must the other densities."""
    from functools import wraps

    from wagle_trainer import attribute
    from wagle_trainer.attribution import get_score
    from wagle_trainer.forgetting import masks

    snip = get_score("snip")

    @wraps(snip)
    def signed(*args, **kwargs):
        score = snip(*args, **kwargs)
        return torch.where(score < score.median(), -0.0, score)

    monkeypatch.setattr(masks, "get_score", lambda name: signed)
    found = masks_by_density(patched.model, *tokens, "snip", SETTINGS.densities)
    alone = attribute(patched.model, masks._batches(tokens[0], 8), None, score=signed, density=0.1, progress=False)
    assert (found[0.1] & alone).num_selected == alone.num_selected


def test_taken_back_and_put_in_again(patched, train, masks, weights_of):
    before = weights_of(patched.model)
    patch = train(masks[0.1])
    after = weights_of(patched.model)
    assert not same(patched.model, before)
    assert patch.info.training["steps"] == 4
    with patched.taken_back():
        assert same(patched.model, before)
    assert same(patched.model, after)
    patched.revert()
    assert same(patched.model, before) and patched.patch is None
    patched.apply(patch)
    assert same(patched.model, after)


def test_the_next_try_starts_from_the_reference_model(patched, train, masks, weights_of):
    train(masks[0.1])
    train(masks[0.01])
    second = weights_of(patched.model)
    patched.revert()
    train(masks[0.01])
    assert same(patched.model, second)


def test_it_ends_early_and_goes_back_to_an_earlier_state(patched, train, masks, weights_of):
    states = []

    def keep():
        states.append((patched.values(), weights_of(patched.model)))
        return RATE

    train(masks[0.1], keep)
    assert len(states) == 1  # after two steps of four; at the end it is over anyway
    values, weights = states[0]
    assert not same(patched.model, weights)
    patched.return_to(values, 2)
    assert same(patched.model, weights)
    assert patched.patch.info.training["steps"] == 2
    assert train(masks[0.1], lambda: None).info.training["steps"] == 2


def test_the_rate_can_change_in_the_middle(patched, train, masks, weights_of):
    """The first two steps are those of a run at one rate; then the weights stay where they are."""
    states = {}
    for name, following in (("same", RATE), ("none", 0.0)):

        def look(name=name, following=following):
            states[name] = weights_of(patched.model)
            return following

        patch = train(masks[0.1], look)
        assert patch.info.training["learning_rate"] == RATE
        assert same(patched.model, states[name]) == (following == 0.0)
    assert all(torch.equal(value, states["none"][name]) for name, value in states["same"].items())
    assert train(masks[0.1], lambda: 2 * RATE).info.training["learning_rate"] == 2 * RATE


def test_a_loss_that_is_not_finite_leaves_the_reference_model(patched, train, masks, weights_of, monkeypatch):
    from wagle_trainer.losses.forget.npo import NPO

    before = weights_of(patched.model)
    monkeypatch.setattr(NPO, "forget_loss", lambda self, inputs: inputs.forget.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="forget loss of step 1 is not finite"):
        train(masks[0.1])
    assert same(patched.model, before) and patched.patch is None


def test_a_patch_of_another_model_is_refused(patched, train, masks, make_llama):
    patch = train(masks[0.1])
    with pytest.raises(AdapterMismatchError):
        PatchedModel(make_llama(1)).apply(patch)
