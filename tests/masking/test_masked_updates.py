"""Unselected weights keep their bits under every optimizer; selected ones move as they would without a mask."""

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from wagle_trainer.masking import MaskedUpdates, WeightMask

OPTIMIZERS = {
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw_loop": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw_maximize": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, maximize=True),
    "adamw_amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd_maximize": lambda p: torch.optim.SGD(p, lr=1e-2, weight_decay=0.1, maximize=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1),
    "adafactor": lambda p: Adafactor(p, lr=1e-2, weight_decay=0.1, relative_step=False, scale_parameter=False),
}

WIDE_ENOUGH_FOR_8_BITS = 256  # smaller tensors keep their moments in float32


def network(dtype=torch.float32, width=40):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, width), nn.Tanh(), nn.Linear(width, 8, bias=False)).to(dtype)
    with torch.no_grad():
        model[0].weight[:, ::5] = -0.0  # minus zero differs from zero in its bits only
    return model


def random_mask(model, density=0.3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return WeightMask.from_dict(
        {name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters()}
    )


def train(model, optimizer, steps=20, clip=None):
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        inputs = torch.randn(16, 24, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def as_integers(tensor):
    return tensor.detach().view({4: torch.int32, 2: torch.int16}[tensor.element_size()])


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unselected_weights_keep_their_bits(name, dtype):
    check_only_selected_moved(OPTIMIZERS[name], dtype)


@pytest.mark.slow  # torchao compiles its step
def test_unselected_weights_keep_their_bits_under_an_8_bit_optimizer():
    low_bit = pytest.importorskip("torchao.optim", reason="torchao's 8-bit AdamW is not installed")
    optimizer = check_only_selected_moved(
        lambda p: low_bit.AdamW8bit(p, lr=1e-2, weight_decay=0.1), torch.float32, WIDE_ENOUGH_FOR_8_BITS
    )
    moments = {type(value).__name__ for state in optimizer.state.values() for value in state.values()}
    assert "OptimState8bit" in moments


def check_only_selected_moved(make, dtype, width=40):
    model = network(dtype, width)
    mask = random_mask(model)
    optimizer = make(model.parameters())
    before = snapshot(model)
    updates = MaskedUpdates(model, mask, optimizer)
    train(model, optimizer)
    assert updates.steps == 20
    moved = []
    for name, parameter in model.named_parameters():
        same = as_integers(parameter) == as_integers(before[name])
        assert bool(same[~mask[name]].all()), name
        moved.append(~same[mask[name]])
    # A small step on a bfloat16 weight is often lost in rounding.
    assert torch.cat(moved).float().mean() > (0.9 if dtype == torch.float32 else 0.2)
    return optimizer


def test_every_optimizer_would_have_moved_them_without_the_mask():
    """Without this, the test above could pass on optimizers that do nothing."""
    for name, make in OPTIMIZERS.items():
        model = network()
        before = snapshot(model)
        train(model, make(model.parameters()))
        moved = torch.cat([(as_integers(p) != as_integers(before[n])).flatten() for n, p in model.named_parameters()])
        assert moved.float().mean() > 0.95, name


class MaskedAdamW:
    """AdamW on the selected weights, from the paper (arXiv 1711.05101, algorithm 2), with torch's order of operations."""

    def __init__(self, model, mask, lr=1e-2, decay=0.1, betas=(0.9, 0.999), eps=1e-8):
        self.model, self.mask, self.lr, self.decay, self.betas, self.eps, self.t = (
            model,
            mask,
            lr,
            decay,
            betas,
            eps,
            0,
        )
        self.m = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        self.v = {n: torch.zeros_like(p) for n, p in model.named_parameters()}

    def zero_grad(self):
        self.model.zero_grad()

    @torch.no_grad()
    def step(self):
        self.t += 1
        b1, b2 = self.betas
        for name, p in self.model.named_parameters():
            grad = torch.where(self.mask[name], p.grad, 0)
            self.m[name] = b1 * self.m[name] + (1 - b1) * grad
            self.v[name] = b2 * self.v[name] + (1 - b2) * grad**2
            m_hat, v_hat = self.m[name] / (1 - b1**self.t), self.v[name] / (1 - b2**self.t)
            new = p * (1 - self.lr * self.decay) - self.lr * m_hat / (v_hat.sqrt() + self.eps)
            p.copy_(torch.where(self.mask[name], new, p))


def test_selected_weights_follow_masked_adamw():
    model, reference = network(), network()
    mask = random_mask(model)
    optimizer = OPTIMIZERS["adamw_foreach"](model.parameters())
    updates = MaskedUpdates(model, mask, optimizer)
    train(model, optimizer)
    train(reference, MaskedAdamW(reference, mask))
    assert updates.steps == 20
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["adamw_foreach", "adamw_loop", "adam", "sgd"])
def test_a_mask_of_everything_is_the_plain_optimizer(name):
    model, plain = network(), network()
    full = WeightMask.from_dict({n: torch.ones(p.shape, dtype=torch.bool) for n, p in model.named_parameters()})
    optimizer = OPTIMIZERS[name](model.parameters())
    updates = MaskedUpdates(model, full, optimizer)
    train(model, optimizer)
    train(plain, OPTIMIZERS[name](plain.parameters()))
    assert updates.steps == 20
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_the_clipped_norm_is_that_of_the_selected_gradients():
    model, plain = network(), network()
    mask = random_mask(model, 0.1)
    updates = MaskedUpdates(model, mask, torch.optim.SGD(model.parameters(), lr=0.1))
    inputs = torch.randn(4, 24)
    for net in (model, plain):
        net(inputs).square().sum().backward()
    expected = torch.cat([p.grad[mask[n]] for n, p in plain.named_parameters()]).norm()
    assert updates.steps == 0
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), 1e9), expected)


def test_the_optimizers_settings_are_the_users_after_each_step():
    model = network()
    optimizer = OPTIMIZERS["adamw_foreach"](model.parameters())
    updates = MaskedUpdates(model, random_mask(model), optimizer)
    train(model, optimizer, steps=2)
    assert updates.steps == 2
    assert [group["weight_decay"] for group in optimizer.state_dict()["param_groups"]] == [0.1]


def test_a_tensor_without_selected_weights_gets_no_moments():
    model = network()
    masks = {name: mask.clone() for name, mask in random_mask(model).items()}
    masks["0.bias"][:] = False
    del masks["2.weight"]  # not in the mask at all: frozen as a whole
    optimizer = OPTIMIZERS["adamw_foreach"](model.parameters())
    before = snapshot(model)
    updates = MaskedUpdates(model, WeightMask.from_dict(masks), optimizer)
    train(model, optimizer, steps=3)
    assert updates.steps == 3
    assert torch.equal(model[0].bias, before["0.bias"])
    assert torch.equal(model[2].weight, before["2.weight"])
    assert list(optimizer.state) == [model[0].weight]


def test_an_infinite_gradient_of_a_frozen_weight_does_no_harm():
    model = nn.Linear(2, 1, bias=False)
    mask = WeightMask.from_dict({"weight": torch.tensor([[True, False]])})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    updates = MaskedUpdates(model, mask, optimizer)
    model(torch.tensor([[1.0, float("inf")]])).sum().backward()
    optimizer.step()
    assert updates.steps == 1
    assert bool(torch.isfinite(model.weight).all())


def test_moments_from_before_the_mask_move_nothing():
    model = network()
    optimizer = OPTIMIZERS["adamw_foreach"](model.parameters())
    train(model, optimizer, steps=3)
    mask, before = random_mask(model), snapshot(model)
    updates = MaskedUpdates(model, mask, optimizer)
    train(model, optimizer, steps=3)
    assert updates.steps == 3
    assert all(torch.equal(p[~mask[n]], before[n][~mask[n]]) for n, p in model.named_parameters())


def test_detached_updates_leave_a_plain_optimizer():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    MaskedUpdates(model, random_mask(model), optimizer).detach()
    before = snapshot(model)
    train(model, optimizer, steps=1)
    assert (model[0].weight != before["0.weight"]).float().mean() > 0.75


def test_updates_hold_without_being_held():
    """No one has to keep the object: a mask that ends with a variable's scope would end without a word."""
    model = network()
    mask, before = random_mask(model), snapshot(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    MaskedUpdates(model, mask, optimizer)
    train(model, optimizer, steps=2)
    assert all(torch.equal(p[~mask[n]], before[n][~mask[n]]) for n, p in model.named_parameters())


def test_gradients_that_come_without_their_mask_are_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    before = snapshot(model)
    updates = MaskedUpdates(model, random_mask(model), optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # as an engine does that bypasses autograd's hooks
    with pytest.raises(RuntimeError, match=r"'0\.weight' reached the optimizer without its mask"):
        optimizer.step()
    assert updates.steps == 0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_an_optimizer_of_another_model_is_refused():
    model = network()
    with pytest.raises(ValueError, match="holds none of the masked parameters"):
        MaskedUpdates(model, random_mask(model), torch.optim.SGD(network().parameters(), lr=0.1))


def train_by_hand(model, mask, optimizer, decay, steps=20):
    """A dense optimizer without decay of its own, on masked gradients; `decay(weight, gradient)` acts on the selected."""

    class Masked:
        zero_grad = optimizer.zero_grad

        @staticmethod
        @torch.no_grad()
        def step():
            for name, p in model.named_parameters():
                p.grad = torch.where(mask[name], p.grad, 0)
                weight, grad = decay(p, p.grad)
                p.copy_(torch.where(mask[name], weight, p))
                p.grad = torch.where(mask[name], grad, 0)
            optimizer.step()

    train(model, Masked, steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "make", "decay"),
    [
        (
            "adamw_foreach",
            lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0, foreach=True),
            lambda weight, grad: (weight * (1 - 1e-2 * 0.1), grad),
        ),
        (
            "adamw_loop",
            lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0, foreach=False),
            lambda weight, grad: (weight * (1 - 1e-2 * 0.1), grad),
        ),
        (
            "adam",
            lambda p: torch.optim.Adam(p, lr=1e-2),
            lambda weight, grad: (weight, grad.add(weight, alpha=0.1)),
        ),
        (
            "sgd",
            lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
            lambda weight, grad: (weight, grad.add(weight, alpha=0.1)),
        ),
    ],
)
def test_bit_equal_to_torchs_own_steps_with_masked_gradients_and_decay(name, make, decay, dtype):
    model, reference = network(dtype), network(dtype)
    mask = random_mask(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    updates = MaskedUpdates(model, mask, optimizer)
    train(model, optimizer)
    assert updates.steps == 20
    train_by_hand(reference, mask, make(reference.parameters()), decay)
    for (key, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(as_integers(p), as_integers(q)), key


@pytest.mark.parametrize("name", ["adamw_maximize", "sgd_maximize", "rmsprop", "nadam"])
def test_selected_weights_move_as_with_all_others_put_back(name):
    """These optimizers work on each weight by itself, so decay on the others changes nothing for the selected ones."""
    model, reference = network(), network()
    mask, start = random_mask(model), snapshot(network())
    optimizer = OPTIMIZERS[name](model.parameters())
    updates = MaskedUpdates(model, mask, optimizer)
    train(model, optimizer)
    assert updates.steps == 20
    inner = OPTIMIZERS[name](reference.parameters())
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        inner.zero_grad()
        reference(torch.randn(16, 24, generator=generator)).square().mean().backward()
        for key, p in reference.named_parameters():
            p.grad[~mask[key]] = 0
        inner.step()
        with torch.no_grad():
            for key, p in reference.named_parameters():
                p[~mask[key]] = start[key][~mask[key]]
    for (key, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(as_integers(p), as_integers(q)), key


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam])
def test_an_optimizer_without_eps_divides_no_frozen_weight_by_zero(make):
    model = network()
    mask, before = random_mask(model), snapshot(model)
    optimizer = make(model.parameters(), lr=1e-2, eps=0.0)
    MaskedUpdates(model, mask, optimizer)
    train(model, optimizer, steps=2)
    for name, p in model.named_parameters():
        assert torch.equal(as_integers(p)[~mask[name]], as_integers(before[name])[~mask[name]]), name


def test_gradients_of_several_backward_passes_add_up():
    model, plain = network(), network()
    mask = random_mask(model)
    updates = MaskedUpdates(model, mask, torch.optim.SGD(model.parameters(), lr=0.1))
    inputs = torch.randn(2, 4, 24)
    for net in (model, plain):
        for part in inputs:
            net(part).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, torch.where(mask[name], q.grad, 0))
    assert updates.steps == 0


def test_clipping_survives_infinite_gradients_of_frozen_weights():
    model = network()
    mask, before = random_mask(model), snapshot(model)
    optimizer = OPTIMIZERS["adamw_foreach"](model.parameters())
    updates = MaskedUpdates(model, mask, optimizer)
    for name, p in model.named_parameters():
        p.register_hook(lambda grad, name=name: torch.where(mask[name], grad, float("inf")))
    train(model, optimizer, steps=2, clip=1.0)
    assert updates.steps == 2
    for name, p in model.named_parameters():
        assert bool(torch.isfinite(p).all())
        assert torch.equal(p[~mask[name]], before[name][~mask[name]])
        assert bool((p[mask[name]] != before[name][mask[name]]).any())


def test_a_wrapped_optimizer():
    class Wrapper:  # as accelerate's AcceleratedOptimizer
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = network()
    mask, before = random_mask(model), snapshot(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    updates = MaskedUpdates(model, mask, Wrapper(Wrapper(optimizer)))
    train(model, optimizer, steps=2)
    assert updates.steps == 2
    assert all(torch.equal(p[~mask[n]], before[n][~mask[n]]) for n, p in model.named_parameters())


def test_old_momentum_does_not_pull_frozen_weights_under_any_optimizer():
    for name, make in OPTIMIZERS.items():
        model = network()
        optimizer = make(model.parameters())
        train(model, optimizer, steps=3)
        mask, before = random_mask(model), snapshot(model)
        updates = MaskedUpdates(model, mask, optimizer)
        train(model, optimizer, steps=3)
        assert updates.steps == 3
        for key, p in model.named_parameters():
            assert torch.equal(as_integers(p)[~mask[key]], as_integers(before[key])[~mask[key]]), (name, key)
            assert bool((p[mask[key]] != before[key][mask[key]]).any()), (name, key)


def test_unselected_weights_keep_their_bits_under_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    probe = nn.Linear(64, 64, bias=False)
    try:
        optimizer = bitsandbytes.optim.AdamW8bit(probe.parameters(), lr=1e-2)
        probe(torch.ones(1, 64)).sum().backward()
        optimizer.step()
    except Exception as error:
        pytest.skip(f"bitsandbytes does not run here: {error!r}")
    optimizer = check_only_selected_moved(
        lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-2, weight_decay=0.1), torch.float32, WIDE_ENOUGH_FOR_8_BITS
    )
    assert any(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())


@pytest.mark.parametrize("next_use", ["step", "detach"])
def test_a_step_that_fails_does_not_lose_the_weight_decay(next_use):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.1)
    updates = MaskedUpdates(model, random_mask(model), optimizer)

    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        optimizer.step(closure=fail)
    if next_use == "detach":
        updates.detach()
    else:
        train(model, optimizer, steps=1)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("name", ["adamw_fused", "adamw_foreach", "sgd", "adam_fused"])
def test_steps_that_a_gradient_scaler_skips_change_nothing(name):
    make = OPTIMIZERS | {"adam_fused": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, fused=True)}
    model, plain = network(), network()
    mask = random_mask(model)
    optimizer, reference = make[name](model.parameters()), make[name](plain.parameters())
    MaskedUpdates(model, mask, optimizer)
    MaskedUpdates(plain, mask, reference)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    inputs = torch.randn(16, 24, generator=torch.Generator().manual_seed(3))
    for overflow in (False, True, False):
        before = snapshot(model)
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().mean()).backward()
        if overflow:
            model[0].weight.grad[mask["0.weight"]] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert all(torch.equal(as_integers(p), as_integers(before[n])) for n, p in model.named_parameters())
        else:
            reference.zero_grad()
            plain(inputs).square().mean().backward()
            reference.step()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_frozen_tensors_can_do_without_gradients():
    model, plain = network(), network()
    mask = WeightMask.from_dict(
        {"0.weight": torch.zeros(40, 24, dtype=torch.bool), "2.weight": torch.rand(8, 40) < 0.5}
    )  # the bias is not in the mask at all
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1) for m in (model, plain)]
    updates = MaskedUpdates(model, mask, optimizers[0], skip_frozen=True)
    MaskedUpdates(plain, mask, optimizers[1])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True]
    hidden = model[0](torch.ones(1, 24))
    assert not hidden.requires_grad  # the backward pass ends before the frozen module
    for each, optimizer in zip((model, plain), optimizers, strict=True):
        train(each, optimizer, clip=0.1)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(as_integers(found), as_integers(expected))
    updates.detach()
    assert all(p.requires_grad for p in model.parameters())
