"""Every objective against the formula of its paper, in float64 and on single unpadded examples: values and gradients."""

import math

import pytest
import torch

from wagle_trainer.losses import LossInputs, get_loss, list_losses
from wagle_trainer.losses.forget.random_label import random_tokens
from wagle_trainer.models.architecture import decoder_layer
from wagle_trainer.models.log_probs import TokenLogProbs, joint_token_log_probs, token_log_probs


def softplus(x):
    return torch.log(1 + torch.exp(x))


def npo(forget, chosen, beta=0.3, by_length=False, target=1.0):
    """Eq. 3 in its other form, (2 / beta) log(1 + (p / (target p_ref))^beta)."""
    now, before = forget
    log_ratio = now.log_p.mean() - before.log_p.mean() if by_length else now.log_p.sum() - before.log_p.sum()
    return 2 / beta * torch.log(1 + (torch.exp(log_ratio) / target) ** beta)


def dpo(forget, chosen, beta):
    (now, before), (other, other_before) = forget, chosen
    return softplus(-beta * ((other.log_p - other_before.log_p).sum() - (now.log_p - before.log_p).sum()))


def ceu(forget, chosen, beta=None, ignored=1):
    now, _ = forget
    if len(now.targets) <= ignored:
        return now.logits.sum() * 0
    losses = []
    for logits, target in list(zip(now.logits, now.targets, strict=True))[ignored:]:
        others = torch.arange(len(logits)) != target
        q = logits.detach()[others].softmax(-1)  # the model's own distribution without the true token
        losses.append(-(q * logits.log_softmax(-1)[others]).sum())
    return sum(losses) / len(losses)


def jensun(forget, chosen, tokens=(9, 30)):
    now, _ = forget
    losses = []
    for t, logits in enumerate(now.logits):
        p, onehot = logits.softmax(-1), torch.zeros(len(logits), dtype=torch.float64)
        onehot[tokens[t % len(tokens)]] = 1
        middle = (p + onehot) / 2
        kl = [torch.where(side > 0, side * (side.clamp(min=1e-300) / middle).log(), 0).sum() for side in (p, onehot)]
        losses.append(sum(kl) / 2)
    return sum(losses) / len(losses)


def undial(forget, chosen, beta=3.0):
    now, before = forget
    losses = []
    for logits, reference, target in zip(now.logits, before.logits, now.targets, strict=True):
        lowered = reference.clone()
        lowered[target] -= beta
        losses.append(-(lowered.softmax(-1) * logits.log_softmax(-1)).sum())
    return sum(losses) / len(losses)


def tnpo(forget, chosen, beta=0.7):
    now, before = forget
    return (2 / beta * torch.log(1 + (now.log_p.exp() / before.log_p.exp()) ** beta)).mean()


def flat(divergence):
    def formula(forget, chosen):
        p, q = forget[0].log_p.exp().mean(), chosen[0].log_p.exp().mean()
        if divergence == "total_variation":
            return torch.tanh(p) / 2 - torch.tanh(q) / 2
        if divergence == "kl":
            return torch.exp(p - 1) - q
        if divergence == "pearson":
            return p**2 / 4 + p - q
        activation = lambda v: math.log(2) - torch.log(1 + torch.exp(-v))  # noqa: E731
        conjugate = lambda u: -torch.log(2 - torch.exp(u))  # noqa: E731
        return conjugate(activation(p)) - activation(q)

    return formula


def control(size=32, seed=5):
    vector = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return (vector / vector.norm()).double()


def rmu(forget, chosen):
    return ((forget[0].states - 2.5 * control()) ** 2).sum(-1).mean() / 32


def adaptive_rmu(forget, chosen):
    now, before = forget
    losses = [
        ((h - 3 * reference.norm() * control()) ** 2).sum() / 32
        for h, reference in zip(now.states, before.states, strict=True)
    ]
    return sum(losses) / len(losses)


def weighted(weight):
    """Gradient ascent with detached weights."""
    return lambda forget, chosen: (weight(forget[0].log_p.detach().exp()) * forget[0].log_p).mean()


# name: (objective, its arguments, formula of a forget example and its chosen answer)
CASES = {
    "grad_ascent": ("grad_ascent", {}, lambda f, _: f[0].log_p.mean()),
    "grad_diff": ("grad_diff", {}, lambda f, _: f[0].log_p.mean()),
    "npo": ("npo", {"beta": 0.3}, npo),
    "npo by length": ("npo", {"beta": 0.3, "length_normalized": True}, lambda f, p: npo(f, p, by_length=True)),
    "npo with target": ("npo", {"beta": 0.3, "target": 0.05}, lambda f, p: npo(f, p, target=0.05)),
    "po": ("po", {}, lambda _, p: -p[0].log_p.mean()),
    "simnpo": ("simnpo", {"beta": 1.5, "delta": 0.2}, lambda f, _: 2 / 1.5 * softplus(1.5 * f[0].log_p.mean() + 0.2)),
    "dpo": ("dpo", {"beta": 0.3}, lambda f, p: dpo(f, p, 0.3)),
    "altpo": ("altpo", {"beta": 0.3}, lambda f, p: 2 / 0.3 * dpo(f, p, 0.3)),
    "kl_min": ("kl_min", {}, lambda f, _: f[0].log_p.mean()),
    "wga": ("wga", {"beta": 0.6}, weighted(lambda p: p**0.6)),
    "satimp": ("satimp", {"beta1": 0.8, "beta2": 1.7}, weighted(lambda p: p**0.8 * (1 - p) ** 1.7)),
    "ceu": ("ceu", {}, ceu),
    "ceu, all tokens": ("ceu", {"ignore_first_tokens": 0}, lambda f, p: ceu(f, p, ignored=0)),
    "jensun": ("jensun", {"target": [9, 30]}, jensun),
    "tnpo": ("tnpo", {"beta": 0.7}, tnpo),
    "undial": ("undial", {"beta": 3.0}, undial),
    "pdu": ("pdu", {"retain_eps": 0.1}, lambda f, _: ((f[0].logits.amax(-1) - f[0].logits.mean(-1)) ** 2).mean()),
    "rmu": ("rmu", {"layer": 0, "coefficient": 2.5}, rmu),
    "adaptive rmu": ("rmu", {"layer": 0, "adaptive": True, "scale": 3.0}, adaptive_rmu),
    **{
        f"flat, {d}": ("flat", {"divergence": d}, flat(d))
        for d in ("total_variation", "kl", "jensen_shannon", "pearson")
    },
}


def test_every_objective_has_an_oracle():
    below = {"random_label"}
    without_forget_loss = {"finetune", "l1_sparse"}  # the penalty of l1_sparse: test_training.py
    built_in = {name for name in list_losses() if get_loss(name).__module__.startswith("wagle_trainer.")}
    assert built_in == {name for name, _, _ in CASES.values()} | below | without_forget_loss


@pytest.mark.parametrize("case", CASES)
def test_objective(case, world):
    name, arguments, formula = CASES[case]
    loss = get_loss(name)(**arguments)
    loss.setup(None, seed=5)

    def losses_of(size, side):
        return [loss.forget_loss(inputs) for inputs in world.loss_inputs(loss.needs, size, side)]

    expected = [formula(*example) for example in zip(world.forget, world.chosen, strict=True)]
    world.assert_same_for_all_paddings(losses_of, expected)


def test_random_label(world):
    """Whatever the tokens are, they are those of the row, and the loss is their negative log-likelihood."""
    loss = get_loss("random_label")()
    loss.setup(None, seed=5)
    expected = []
    for row, (now, _) in enumerate(world.forget):
        places = torch.arange(len(now.targets))
        tokens = random_tokens(5, torch.full_like(places, row), places, now.logits.shape[-1])
        expected.append(-now.logits.log_softmax(-1)[range(len(tokens)), tokens].mean())

    def losses_of(size, side):
        return [loss.forget_loss(inputs) for inputs in world.loss_inputs(loss.needs, size, side)]

    world.assert_same_for_all_paddings(losses_of, expected)


def test_npos_gradient_is_weighted_gradient_ascent(world):
    """Section 3 of the paper: W grad log p, with W = 2 p^beta / (p^beta + p_ref^beta)."""
    log_p, reference = (torch.stack([side.log_p.sum() for side in sides]) for sides in zip(*world.forget, strict=True))
    p, p_ref = (0.3 * log_p.detach()).exp(), (0.3 * reference).exp()
    weights = 2 * p / (p + p_ref)
    assert weights.min() < 0.7
    assert weights.max() > 1.3
    loss = get_loss("npo")(beta=0.3)
    (inputs,) = world.loss_inputs(loss.needs, world.number, "right")
    found, wanted = world.gradients(loss.forget_loss(inputs)), world.gradients(weights * log_p)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * wanted.abs().max().item())


def test_npo_starts_as_gradient_ascent_on_whole_answers():
    """Where model and reference agree; beta is 0.1 in the paper."""
    log_p = torch.tensor([[-0.5, -2.0], [-0.1, -0.2]], requires_grad=True)
    answers = TokenLogProbs(log_p, torch.ones(2, 2, dtype=torch.bool))
    loss = get_loss("npo")().forget_loss(LossInputs(answers, forget_reference=log_p.detach().sum(-1)))
    torch.testing.assert_close(loss, torch.full((2,), 2 / 0.1 * math.log(2)))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), log_p)[0], torch.ones(2, 2))


def test_npo_of_extreme_ratios_is_finite():
    log_p = torch.tensor([[-1.0], [-1.0]], requires_grad=True)
    answers = TokenLogProbs(log_p, torch.ones(2, 1, dtype=torch.bool))
    reference = log_p.detach().sum(-1) + torch.tensor([-1e4, 1e4])
    loss = get_loss("npo")(beta=1.0).forget_loss(LossInputs(answers, forget_reference=reference))
    torch.testing.assert_close(loss, torch.tensor([2e4, 0.0]))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), log_p)[0], torch.tensor([[2.0], [0.0]]))


def splitmix64(value):
    """The finalizer in Python's integers, which do not overflow."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@pytest.mark.parametrize("vocabulary", [40, 151_936])
def test_random_tokens_are_splitmix64_of_seed_row_and_place(vocabulary):
    step = 0x9E3779B97F4A7C15
    for seed in (0, 42, 2**32 - 1):
        rows, places = torch.arange(12) * 7919, torch.arange(12) % 5
        keys = [splitmix64((row * step + splitmix64(seed)) % 2**64) for row in rows.tolist()]
        expected = [
            splitmix64((key + place * step) % 2**64) % 2**63 % vocabulary
            for key, place in zip(keys, places.tolist(), strict=True)
        ]
        assert random_tokens(seed, rows, places, vocabulary).tolist() == expected


def chi_square(tokens, vocabulary):
    """Standard deviations from what uniform tokens have in the mean; each row of `tokens` has counts of its own."""
    counts = torch.nn.functional.one_hot(tokens, vocabulary).sum(1).double()
    expected = tokens.shape[1] / vocabulary
    freedom = len(tokens) * (vocabulary - 1)
    return ((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)).item()


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_random_tokens_are_uniform_and_independent(seed):
    """Over everything, over the answer of each row, over the rows at each place, and in pairs of neighbours."""
    rows, places = torch.arange(1000)[:, None].expand(1000, 40), torch.arange(40).expand(1000, 40)
    tokens = random_tokens(seed, rows, places, 25)
    for shape in (tokens.reshape(1, -1), tokens, tokens.T):
        assert abs(chi_square(shape, 25)) < 4
    upper = torch.triu_indices(40, 40, 1)
    neighbours = {
        "place": (tokens[:, :-1], tokens[:, 1:]),
        "row": (tokens[:-1], tokens[1:]),
        "second row": (tokens[:-2], tokens[2:]),
        "row and place": (tokens[:-1, 1:], tokens[1:, :-1]),
        "seed": (tokens, random_tokens(seed + 1, rows, places, 25)),
        "row for place": (tokens[upper[0], upper[1]], tokens[upper[1], upper[0]]),
    }
    for name, (one, other) in neighbours.items():
        assert abs(chi_square((one * 25 + other).reshape(1, -1), 625)) < 4, name


def test_random_tokens_do_not_depend_on_the_batch():
    """Any order, any selection, any layout in memory gives an entry the same token."""
    rows, places = torch.randint(2**31, (500,)), torch.randint(4096, (500,))
    tokens = random_tokens(3, rows, places, 50_257)
    order = torch.randperm(500)
    assert torch.equal(random_tokens(3, rows[order], places[order], 50_257), tokens[order])
    assert torch.equal(random_tokens(3, rows[::3], places[::3], 50_257), tokens[::3])
    assert random_tokens(3, rows[7], places[7], 50_257) == tokens[7]
    assert not torch.equal(random_tokens(4, rows, places, 50_257), tokens)


def test_states_of_joint_passes_are_those_of_single_ones(world, pad_batches):
    """Shared forward passes, and two layers at once."""
    layers = {"forget": decoder_layer(world.model, 0, ""), "retain": decoder_layer(world.model, 1, "")}
    sets = {"forget": world.sets["forget"], "retain": world.sets["chosen"]}
    batches = {split: pad_batches(rows, world.number)[0] for split, rows in sets.items()}
    hooks = [len(module._forward_hooks) for module in world.model.modules()]  # Transformers leaves some of its own
    joint = joint_token_log_probs(world.model, batches, layers=layers)
    for split, layer in layers.items():
        alone = token_log_probs(world.model, batches[split], layer=layer)
        assert alone.states.shape == (*alone.mask.shape, 32)
        torch.testing.assert_close(joint[split].target_states(), alone.target_states(), rtol=1e-4, atol=1e-5)
    assert [len(module._forward_hooks) for module in world.model.modules()] == hooks


def test_jensun_is_bounded_and_flat_at_both_ends():
    """A refusal of probability 0 or 1 in float32."""
    for logit, value in ((-200.0, math.log(2)), (200.0, 0.0)):
        logits = torch.zeros(1, 1, 5)
        logits[..., 2] = logit
        logits.requires_grad_()
        mask = torch.ones(1, 1, dtype=torch.bool)
        answer = TokenLogProbs(
            torch.zeros(1, 1), mask, logits=logits, kept=torch.tensor([0]), labels=torch.tensor([[1]])
        )
        loss = get_loss("jensun")(target=[2]).forget_loss(LossInputs(answer))
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert torch.autograd.grad(loss.sum(), logits)[0].abs().max() < 1e-5


def test_weights_are_constants():
    """The gradient of WGA with beta = 1 is that of the probability itself; with weights that are not detached it would
    have another term."""
    log_p = torch.tensor([[-0.5, -2.0]], requires_grad=True)
    answer = TokenLogProbs(log_p, torch.ones(1, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(get_loss("wga")().forget_loss(LossInputs(answer)).sum(), log_p)
    torch.testing.assert_close(gradient, log_p.detach().exp() / 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("npo", {"beta": 0.0}, "NPO's beta must be positive"),
        ("npo", {"beta": math.nan}, "NPO's beta must be positive"),
        ("simnpo", {"beta": 0.0}, "SimNPO's beta must be positive"),
        ("dpo", {"beta": -1.0}, "DPO's beta must be positive"),
        ("altpo", {"beta": 0.0}, "AltPO's beta must be positive"),
        ("tnpo", {"beta": 0.0}, "TNPO's beta must be positive"),
        ("undial", {"beta": 0.0}, "UNDIAL's beta must be positive"),
        ("wga", {"beta": -1.0}, "WGA's beta must not be negative"),
        ("satimp", {"beta2": -1.0}, "SatImp's beta1 and beta2"),
        ("ceu", {"ignore_first_tokens": -1}, "ignore_first_tokens must not be negative"),
        ("jensun", {"target": ""}, "at least one token"),
        ("flat", {"divergence": "tv"}, "Unknown divergence 'tv' of FLAT. Known: total_variation, kl"),
        ("l1_sparse", {"gamma": -1.0}, "gamma must not be negative"),
        ("l1_sparse", {"schedule": "cosine"}, "Unknown schedule 'cosine'.*linear, constant"),
        ("pdu", {"retain_eps": 0.1, "dual_step_size": -1.0}, "dual_step_size and initial_dual"),
    ],
)
def test_arguments_out_of_range(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        get_loss(name)(**arguments)


def test_dual_variable():
    loss = get_loss("pdu")(retain_eps=0.5, dual_step_size=2.0, dual_warmup_epochs=1.0, initial_dual=0.3)
    loss.step_end(retain_loss=1.0, epoch=1.0)
    assert loss.retain_factor() == 0.3  # warming up
    loss.step_end(retain_loss=1.0, epoch=1.1)
    assert loss.retain_factor() == pytest.approx(1.3)
    loss.step_end(retain_loss=0.1, epoch=1.2)
    assert loss.retain_factor() == pytest.approx(0.5)
    other = get_loss("pdu")(retain_eps=0.5)
    other.load_state(loss.state())
    assert other.dual == loss.dual
    loss.step_end(retain_loss=0.0, epoch=1.3)
    assert loss.retain_factor() == 0.0  # never negative
