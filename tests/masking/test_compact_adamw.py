"""The compact AdamW follows dense AdamW with masked gradients and masked decay, bitwise identical."""

import copy
import io
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from wagle_trainer.masking import MaskedUpdates, WeightMask, bits
from wagle_trainer.masking import compact_adamw as optim
from wagle_trainer.masking.compact_adamw import CompactAdamW

IMPLEMENTATIONS = [{"foreach": True}, {"foreach": False}, {"fused": True}, {}]


def as_integers(tensor):
    return tensor.detach().view({4: torch.int32, 2: torch.int16}[tensor.element_size()])


def parameters(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    with torch.no_grad():
        for parameter in made:
            parameter.view(-1)[::5] = -0.0  # minus zero differs from zero in its bits only
    return made


def random_masks(shapes, densities, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(s, generator=generator) < d for s, d in zip(shapes, densities, strict=True)]


def groups(parameters):
    """Decay for every other one, and another learning rate."""
    return [{"params": parameters[::2], "weight_decay": 0.1}, {"params": parameters[1::2], "lr": 3e-3}]


def packed(parameters, masks):
    """Of partly selected parameters only, as MaskedUpdates hands them over, and of those that are not selected."""
    return {p: bits.pack(m) for p, m in zip(parameters, masks, strict=True) if not bool(m.all())}


def compact(parameters, masks, **options):
    optimizer = CompactAdamW(groups(parameters), **({"lr": 1e-2, "weight_decay": 0.0} | options))
    optimizer.set_masks(packed(parameters, masks))
    return optimizer


def step(optimizer, parameters, masks, steps=5, first=0):
    """Steps on random gradients of the selected weights; a dense optimizer's unselected weights are put back."""
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + number)
        before = [p.detach().clone() for p in parameters]
        for i, (p, m) in enumerate(zip(parameters, masks, strict=True)):
            gradient = torch.randn(p.shape, generator=generator).to(p.dtype) * 10.0 ** (number % 3)
            p.grad = torch.where(m, gradient, 0) if (i + number) % 4 or i == 0 else None  # some have none now and then
        optimizer.step()
        if not isinstance(optimizer, CompactAdamW):
            with torch.no_grad():
                for p, m, old in zip(parameters, masks, before, strict=True):
                    p.copy_(torch.where(m, p, old))


def assert_same(parameters, others):
    for p, q in zip(parameters, others, strict=True):
        assert torch.equal(as_integers(p), as_integers(q))


def assert_close(parameters, others):
    """PyTorch's fused kernel rounds the last weights of a tensor, which fill no vector register, in another way."""
    for p, q in zip(parameters, others, strict=True):
        torch.testing.assert_close(p, q)


SHAPES = [(40, 33), (257,), (8, 5, 7), (1,)]


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 19), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5),
    densities=st.lists(st.sampled_from([0.0, 0.02, 0.2, 0.5, 0.9, 1.0]), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    options=st.sampled_from(IMPLEMENTATIONS),
    chunk=st.sampled_from([8, 64, 2**19]),
    seed=st.integers(0, 1000),
)
def test_follows_dense_masked_adamw(shapes, densities, dtype, options, chunk, seed):
    masks = random_masks(shapes, densities[: len(shapes)], seed)
    mine, dense = parameters(shapes, dtype, seed), parameters(shapes, dtype, seed)
    with mock.patch.object(optim, "CPU_CHUNK", chunk):
        optimizer = compact(mine, masks, **options)
        step(optimizer, mine, masks)
    reference = AdamW(groups(dense), lr=1e-2, weight_decay=0.0, **options)
    step(reference, dense, masks)
    check = assert_close if "fused" in options else assert_same
    check(mine, dense)
    for p, q, m in zip(mine, dense, masks, strict=True):
        if bool(m.any()) and q in reference.state:
            for name in ("exp_avg", "exp_avg_sq"):
                value = optimizer.state[p][name]
                assert value.shape == (p.shape if bool(m.all()) else (int(m.sum()),))
                assert value.dtype == reference.state[q][name].dtype
                check([value.view(-1)], [reference.state[q][name][m]])
            assert torch.equal(optimizer.state[p]["step"], reference.state[q]["step"])
            assert optimizer.state[p]["step"].dtype == reference.state[q]["step"].dtype


@pytest.mark.parametrize("options", IMPLEMENTATIONS)
def test_unselected_weights_are_never_written(options):
    masks = random_masks(SHAPES, [0.3, 0.0, 0.7, 1.0])
    mine, start = parameters(SHAPES), parameters(SHAPES)
    optimizer = compact(mine, masks, **options)
    for _ in range(3):
        for p, m in zip(mine, masks, strict=True):
            p.grad = torch.where(m, torch.ones(()), float("inf"))  # what the gradient is there does not matter
        optimizer.step()
    for p, old, m in zip(mine, start, masks, strict=True):
        same = as_integers(p) == as_integers(old)
        assert bool(same[~m].all())
        assert not bool(same[m].any())
        assert bool(torch.isfinite(p).all())


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)])
def test_threads_change_nothing(lr):
    threads = torch.get_num_threads()
    shapes = [(64, 50)] * 6
    masks = random_masks(shapes, [0.4] * 6)
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            mine = parameters(shapes)
            with mock.patch.object(optim, "CPU_CHUNK", 1024):
                step(compact(mine, masks, lr=lr, foreach=False), mine, masks)
            assert torch.get_num_threads() == number
            results.append(mine)
    finally:
        torch.set_num_threads(threads)
    assert_same(*results)


def test_an_error_in_a_thread_is_not_lost():
    threads = torch.get_num_threads()
    mine = parameters([(64, 50)])
    masks = random_masks([(64, 50)], [0.4])
    try:
        torch.set_num_threads(2)
        with mock.patch.object(optim, "CPU_CHUNK", 1024):
            optimizer = compact(mine, masks)
            with mock.patch.object(optim, "adamw", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
                step(optimizer, mine, masks)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_state_takes_the_selected_share():
    shapes = [(200, 300), (500,)]
    masks = random_masks(shapes, [0.05, 0.05])
    mine, dense = parameters(shapes), parameters(shapes)
    optimizer, reference = compact(mine, masks), AdamW(dense)
    step(optimizer, mine, masks, 1)
    step(reference, dense, masks, 1)
    size = [sum(v.nbytes for s in o.state.values() for v in s.values() if v.dim()) for o in (optimizer, reference)]
    density = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert size[0] == pytest.approx(density * size[1])


@pytest.mark.parametrize("options", IMPLEMENTATIONS)
def test_saved_and_loaded_before_the_mask_is_known(options):
    masks = random_masks(SHAPES, [0.3, 0.0, 0.7, 1.0])
    whole, first = parameters(SHAPES), parameters(SHAPES)
    optimizer = compact(whole, masks, **options)
    step(optimizer, whole, masks, 6)
    half = compact(first, masks, **options)
    step(half, first, masks, 3)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = CompactAdamW(groups(first), lr=1.0, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    with pytest.raises(RuntimeError, match="attach a mask"):
        resumed.step()
    resumed.set_masks(packed(first, masks))
    step(resumed, first, masks, 3, first=3)
    assert_same(first, whole)
    for p, q in zip(first, whole, strict=True):
        assert resumed.state[p].keys() == optimizer.state[q].keys()
        assert all(torch.equal(resumed.state[p][k], optimizer.state[q][k]) for k in resumed.state[p])


def test_the_state_of_a_dense_run_is_reduced():
    masks = random_masks(SHAPES, [0.3, 0.1, 0.7, 1.0])
    dense = parameters(SHAPES)
    reference = AdamW(groups(dense), lr=1e-2, weight_decay=0.0)
    step(reference, dense, masks, 3)
    mine = [nn.Parameter(p.detach().clone()) for p in dense]
    optimizer = CompactAdamW(groups(mine), lr=1e-2, weight_decay=0.0)
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    with mock.patch.object(optim, "CPU_CHUNK", 64):
        optimizer.set_masks(packed(mine, masks))
        assert optimizer.state[mine[0]]["exp_avg"].shape == (int(masks[0].sum()),)
        step(optimizer, mine, masks, 3, first=3)
    step(reference, dense, masks, 3, first=3)
    assert_same(mine, dense)


def test_another_masks_state_is_refused():
    masks, others = random_masks(SHAPES, [0.3] * 4), random_masks(SHAPES, [0.4] * 4, seed=5)
    mine = parameters(SHAPES)
    optimizer = compact(mine, masks)
    step(optimizer, mine, masks, 1)
    optimizer.set_masks(packed(mine, masks))  # the same again is fine
    rolled = [m.roll(1, 0) for m in masks]  # as many of each, but not the same
    for wrong in (others, rolled, [torch.ones_like(m) for m in masks]):
        with pytest.raises(ValueError, match=r"moments of 3\d\d weights .*shape \(40, 33\).*Use the mask of the run"):
            optimizer.set_masks(packed(mine, wrong))
        with pytest.raises(RuntimeError, match="attach a mask"):
            optimizer.step()
        optimizer._positions = None
        optimizer.set_masks(packed(mine, masks))


def test_a_mask_may_change_before_the_first_step():
    masks, others = random_masks(SHAPES, [0.3] * 4), random_masks(SHAPES, [0.4] * 4, seed=5)
    mine, same = parameters(SHAPES), parameters(SHAPES)
    optimizer = compact(mine, masks)
    optimizer.set_masks(packed(mine, others))
    step(optimizer, mine, others)
    step(compact(same, others), same, others)
    assert_same(mine, same)


def test_steps_need_masks_also_after_copying():
    mine = parameters(SHAPES)
    with pytest.raises(RuntimeError, match="attach a mask"):
        CompactAdamW(mine).step()
    with pytest.raises(RuntimeError, match="attach a mask"):
        copy.deepcopy(compact(mine, random_masks(SHAPES, [0.3] * 4))).step()


@pytest.mark.parametrize("name", ["amsgrad", "maximize"])
def test_variants_are_refused(name):
    with pytest.raises(ValueError, match=f"does not support {name}: use torch.optim.AdamW"):
        CompactAdamW(parameters(SHAPES), **{name: True})
    optimizer = CompactAdamW(parameters(SHAPES))
    with pytest.raises(ValueError, match=name):
        optimizer.load_state_dict(AdamW(parameters(SHAPES), **{name: True}).state_dict())


def test_parameters_that_are_not_contiguous_are_refused():
    parameter = nn.Parameter(torch.randn(4, 6).t())
    with pytest.raises(ValueError, match=r"contiguous.*\(6, 4\)"):
        CompactAdamW([parameter]).set_masks({})


def test_gradients_of_another_layout():
    masks = random_masks([(12, 10)], [0.4])
    mine, other = parameters([(12, 10)]), parameters([(12, 10)])
    gradient = torch.randn(10, 12)
    mine[0].grad, other[0].grad = gradient.t(), gradient.t().contiguous()
    for p in (mine, other):
        compact(p, masks).step()
    assert_same(mine, other)


def test_closure():
    mine = parameters([(3, 4)])
    optimizer = compact(mine, random_masks([(3, 4)], [0.5]))

    def closure():
        loss = mine[0].square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad


def test_a_gradient_scaler_skips_overflowing_steps():
    masks = random_masks(SHAPES, [0.3] * 4)
    mine, dense = parameters(SHAPES), parameters(SHAPES)
    optimizer, reference = (
        compact(mine, masks, fused=True),
        AdamW(groups(dense), lr=1e-2, weight_decay=0.0, fused=True),
    )
    for chosen, p in ((optimizer, mine), (reference, dense)):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for overflow in (False, True, False):
            before = [q.detach().clone() for q in p]
            chosen.zero_grad()
            loss = sum(q[m].square().sum() for q, m in zip(p, masks, strict=True))
            scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
            scaler.step(chosen)
            scaler.update()
            with torch.no_grad():
                for q, m, old in zip(p, masks, before, strict=True):
                    q.copy_(torch.where(m, q, old))
                    assert not overflow or torch.equal(q, old)
    assert_close(mine, dense)
    assert all(state["step"] == 2 for state in optimizer.state.values())


# Under MaskedUpdates


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 8, bias=False), nn.Linear(8, 8)).to(dtype)


def mask_of(model, density=0.3):
    masks = random_masks([p.shape for p in model.parameters()], [density, density, density, 1.0, 0.0])
    return WeightMask.from_dict({name: m for (name, _), m in zip(model.named_parameters(), masks, strict=True)})


def train(model, optimizer, steps=10):
    generator = torch.Generator().manual_seed(2)
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 24, generator=generator).to(model[0].weight.dtype)).square().mean().backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
    return norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}])
def test_same_bits_as_plain_adamw_under_masked_updates(options, dtype):
    results = []
    for make in (CompactAdamW, AdamW):
        model = network(dtype)
        optimizer = make(model.parameters(), lr=1e-2, weight_decay=0.1, **options)
        updates = MaskedUpdates(model, mask_of(model), optimizer)
        norms = train(model, optimizer)
        assert updates.steps == 10
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        assert model[3].bias not in optimizer.state
        results.append(([*model.parameters()], norms))
    assert_same(results[0][0], results[1][0])
    assert torch.equal(torch.stack(results[0][1]), torch.stack(results[1][1]))


def test_masked_updates_say_what_to_do_with_compact_moments():
    model = network()
    optimizer = CompactAdamW(model.parameters(), lr=1e-2)
    updates = MaskedUpdates(model, mask_of(model), optimizer)
    train(model, optimizer, 1)
    updates.detach()
    plain = AdamW(model.parameters(), lr=1e-2)
    plain.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="compact_optimizer=True"):
        MaskedUpdates(model, mask_of(model), plain)
