"""gamma and density chosen by rule, and masks kept out of the next: against sorts and medians of everything at once."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wagle_trainer import WeightMask, attribute
from wagle_trainer.attribution.automatic import DensityCurve, choose_gamma
from wagle_trainer.attribution.gradients import attribution_mode, mean_gradient
from wagle_trainer.attribution.selection import exclude, select
from wagle_trainer.masking import bits


@pytest.fixture
def model(make_llama):
    return make_llama(tie_word_embeddings=False, vocab_size=80)  # 23 tokens never occur: their gradient is zero


@pytest.fixture
def sets(make_examples):
    return make_examples(9, seed=1), make_examples(7, seed=2)


@pytest.fixture
def batches(sets, pad_batches):
    return [pad_batches(examples, 4) for examples in sets]


def scored(model, batches, **arguments):
    return attribute(model, *batches, progress=False, **({"density": 0.3} | arguments))


def gradients_of(model, batches):
    parameters = dict(model.named_parameters())
    with attribution_mode(model, parameters):
        return [mean_gradient(model, parameters, of_set, name="", progress=False)[0] for of_set in batches]


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


# gamma


def gamma_by_hand(rule, weights, gradient):
    moving = gradient != 0
    if rule == "auto":
        return gradient[moving].square().mean().sqrt().item()
    return (gradient[moving].abs().median() / weights[moving].abs().median()).item()


@pytest.mark.parametrize("rule", ["auto", "balanced"])
def test_gamma_is_that_of_the_whole_gradient(model, batches, rule):
    _, retain = gradients_of(model, batches)
    gradient = flat(retain.values())
    assert (gradient == 0).any()
    expected = gamma_by_hand(rule, flat(model.parameters()), gradient)
    mask = scored(model, batches, gamma=rule)
    assert mask.info.gamma == pytest.approx(expected, rel=1e-5)
    assert mask.info.gamma_rule == rule
    by_number = scored(model, batches, gamma=mask.info.gamma)
    assert by_number == mask
    assert by_number.info.gamma_rule is None


@pytest.mark.parametrize("rule", ["auto", "balanced"])
def test_gamma_does_not_depend_on_the_size_of_the_retain_set(model, sets, pad_batches, rule):
    forget = pad_batches(sets[0], 4)
    once, thrice = (scored(model, [forget, pad_batches(sets[1] * n, 5)], gamma=rule) for n in (1, 3))
    assert thrice.info.gamma == pytest.approx(once.info.gamma, rel=1e-4)
    assert thrice.info.retain_examples == 3 * once.info.retain_examples
    assert (once | thrice).num_selected - (once & thrice).num_selected <= 1e-4 * once.num_weights


@settings(max_examples=60, deadline=None)
@given(values=hnp.arrays(np.float32, (2, 30), elements=st.floats(-1e6, 1e6, width=32)), cut=st.integers(1, 29))
def test_gamma_of_any_numbers(values, cut):
    weights, gradient = torch.from_numpy(values)
    if not (gradient != 0).any() or not torch.isfinite(gradient.double().square().sum()):
        return

    def pairs():
        return ((weights[part], gradient[part]) for part in (slice(cut), slice(cut, None)))

    expected = gamma_by_hand("auto", weights.double(), gradient.double())
    assert choose_gamma("auto", pairs, lambda _: None) == pytest.approx(expected, rel=1e-6)
    if weights[gradient != 0].abs().median() > 0:
        expected = gamma_by_hand("balanced", weights.double(), gradient.double())
        assert choose_gamma("balanced", pairs, lambda _: None) == pytest.approx(expected, rel=1e-6)
    else:
        with pytest.raises(ValueError, match=r"median \|weight\|"):
            choose_gamma("balanced", pairs, lambda _: None)


@pytest.mark.parametrize("rule", ["auto", "balanced"])
def test_gamma_of_a_zero_gradient(model, batches, rule):
    for parameter in model.parameters():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(ValueError, match=f"gamma='{rule}' is the scale of the retain gradient, but that is zero"):
        scored(model, batches, gamma=rule)


def test_gamma_of_a_gradient_that_is_not_finite(model, batches):
    model.model.norm.weight.register_hook(lambda grad: torch.full_like(grad, math.nan))
    with pytest.raises(FloatingPointError, match="retain gradient is not finite"):
        scored(model, batches, gamma="auto")


def test_gamma_is_ignored_where_it_is_not_used(model, batches):
    info = scored(model, [batches[0], None], score="snip", gamma="auto").info
    assert (info.gamma, info.gamma_rule) == (None, None)


@pytest.mark.parametrize("gamma", ["automatic", "", "1e-6"])
def test_unknown_gamma(model, batches, gamma):
    with pytest.raises(ValueError, match='must be a positive, finite number, "auto" or "balanced", got'):
        scored(model, batches, gamma=gamma)


# Density


def gains_by_hand(score, forget, retain):
    order = np.argsort(-score, kind="stable")
    shares = [np.concatenate([[0], np.cumsum(np.abs(g)[order]) / np.abs(g).sum()]) for g in (forget, retain)]
    at = np.arange(1, 101) / 100
    return np.interp(at, np.arange(len(score) + 1) / len(score), shares[0] - shares[1])


@pytest.mark.parametrize("score", ["grad_ratio", "gradient", "wagle"])
def test_density_is_where_the_curves_are_furthest_apart(model, batches, score):
    forget, retain = (flat(grads.values()).numpy() for grads in gradients_of(model, batches))
    weights = flat(model.parameters()).numpy()
    scores = {
        "grad_ratio": np.abs(forget) / (np.abs(retain) + 1e-10),
        "gradient": np.abs(forget),
        "wagle": np.abs((weights - retain / 0.05) * forget),
    }[score]
    gains = gains_by_hand(scores, forget, retain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = scored(model, batches, score=score, density="auto", gamma=0.05)
    picked = mask.info.requested_density
    assert mask.info.density_rule == "auto"
    assert mask.num_selected == math.floor(picked * mask.num_weights)
    if gains.max() >= 0.1:
        assert gains[round(picked * 100) - 1] == pytest.approx(gains.max(), abs=2e-3)
    else:
        assert picked == 0.8
    assert scored(model, batches, score=score, density=picked, gamma=0.05) == mask


def test_a_clear_knee_is_found():
    """A fifth of the weights holds nine tenths of the forget gradient and a tenth of the retain gradient."""
    generator = torch.Generator().manual_seed(0)
    size, knee = 100_000, 20_000
    forget, retain = torch.full((size,), 0.1 / (size - knee)), torch.full((size,), 0.9 / (size - knee))
    forget[:knee], retain[:knee] = 0.9 / knee, 0.1 / knee
    score = torch.rand(size, generator=generator)
    score[:knee] += 1
    shuffle = torch.randperm(size, generator=generator)
    curve = DensityCurve()
    for part in shuffle.split(30_000):
        curve.add(score[part], forget[part], -retain[part])
    density, gain = curve.choose()
    assert density == 0.2
    assert gain == pytest.approx(0.8, abs=1e-3)


def test_without_a_knee_it_says_so_and_falls_back(model, batches):
    with pytest.warns(UserWarning, match=r"no clear knee: at best, at .* The density is 0\.8\."):
        mask = scored(model, batches, score="random", density="auto")
    assert mask.info.requested_density == 0.8
    assert mask.info.density_rule == "auto"
    assert mask.num_selected == math.floor(0.8 * mask.num_weights)


def test_density_auto_needs_both_sets(model, batches):
    with pytest.raises(ValueError, match="'gradient' needs the retain gradient: pass retain_batches"):
        scored(model, [batches[0], None], score="gradient", density="auto")
    with pytest.raises(ValueError, match='density="auto" compares all weights: use the scope "global"'):
        scored(model, batches, density="auto", scope="row")
    with pytest.raises(ValueError, match=r'density must be in \(0, 1\], got .*Or "auto"'):
        scored(model, batches, density="best")


def test_curve_of_a_zero_gradient():
    curve = DensityCurve()
    curve.add(torch.rand(10), torch.rand(10), torch.zeros(10))
    assert curve.choose()[1] == 0


# Masks of earlier requests


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_weights_of_an_earlier_mask_are_no_candidates(model, batches, scope):
    earlier = scored(model, [batches[1], None], score="gradient", density=0.4)
    mask = scored(model, batches, gamma=0.05, scope=scope, exclude_mask=earlier)
    assert (mask & earlier).num_selected == 0
    assert mask.info.exclude_mask == earlier.digest
    free = {name: ~earlier[name] for name in mask}
    if scope == "global":
        assert mask.num_selected == math.floor(0.3 * sum(int(f.sum()) for f in free.values()))
    for name in mask:
        if scope == "tensor":
            assert mask[name].sum() == math.floor(0.3 * int(free[name].sum()))
        if scope == "row" and mask[name].dim() > 1:
            assert mask[name].sum(1).tolist() == [math.floor(0.3 * n) for n in free[name].sum(1).tolist()]


def test_all_that_is_left(model, batches):
    earlier = scored(model, batches, score="snip", density=0.4)
    assert scored(model, batches, density=1.0, exclude_mask=earlier) == ~earlier
    everything = WeightMask.from_dict(
        {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    )
    with pytest.raises(ValueError, match="selects none of the 0 weights"):
        scored(model, batches, exclude_mask=everything)


def test_an_earlier_mask_of_some_tensors_or_of_another_model(model, batches, make_llama):
    earlier = scored(model, batches, include=["q_proj"], density=1.0)
    mask = scored(model, batches, exclude_mask=earlier)
    assert sum(mask.num_selected_in(name) for name in earlier) == 0
    assert mask.num_selected == math.floor(0.3 * (mask.num_weights - earlier.num_weights))
    with pytest.raises(ValueError, match="does not belong to this model"):
        scored(make_llama(hidden_size=16), batches, exclude_mask=earlier)


def test_an_earlier_mask_does_not_change_the_weights(model, batches):
    """A score may be the weight itself: taking weights out must not write into it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    before = flat(model.parameters())
    earlier = scored(model, batches, score="snip")
    scored(model, [None, None], score=lambda weight: weight, exclude_mask=earlier)
    assert torch.equal(flat(model.parameters()), before)


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float32, (4, 9), elements=st.sampled_from([0.0, 1e-40, 1.0, 2.0])),
    out=hnp.arrays(np.bool_, (4, 9)),
    density=st.floats(0, 1, exclude_min=True),
    scope=st.sampled_from(["global", "tensor", "row"]),
)
def test_selection_among_the_candidates_is_a_stable_sort(values, out, density, scope):
    score = exclude(torch.from_numpy(values), torch.from_numpy(out))
    packed = select({"a": score}, density, scope, excluded={"a": int(out.sum())})["a"]
    found = bits.unpack(packed, (4, 9)).numpy()
    expected = np.zeros_like(out)
    units = [(row, slice(None)) for row in range(4)] if scope == "row" else [(slice(None), slice(None))]
    for unit in units:
        candidates = np.flatnonzero(~out[unit].reshape(-1))
        best = candidates[np.argsort(-values[unit].reshape(-1)[candidates], kind="stable")]
        chosen = np.zeros(out[unit].size, dtype=bool)
        chosen[best[: math.floor(density * len(candidates))]] = True
        expected[unit] = chosen.reshape(out[unit].shape)
    np.testing.assert_array_equal(found, expected)
