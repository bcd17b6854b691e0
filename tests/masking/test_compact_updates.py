"""Compact training follows dense masked training, on gradients, moments and masters of the selected weights only."""

import io

import pytest
import torch
from torch import nn

from wagle_trainer.masking import CompactUpdates, MaskedUpdates, WeightMask
from wagle_trainer.masking.attach_mask import attach_mask
from wagle_trainer.masking.compact_adamw import CompactAdamW
from wagle_trainer.masking.compact_updates import master_weights

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw_loop": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False),
    "adamw_amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1),
}


def network(dtype=torch.float32):
    """Partly selected, fully selected and frozen tensors."""
    torch.manual_seed(0)
    layers = [nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 8, bias=False)]
    return nn.Sequential(*layers).to(dtype)


def mask_of(model, density=0.1):
    generator = torch.Generator().manual_seed(1)
    masks = {n: torch.rand(p.shape, generator=generator) < density for n, p in model.named_parameters()}
    masks["2.bias"][:], masks["4.weight"][:] = True, False
    del masks["0.bias"]  # not in the mask at all
    return WeightMask.from_dict(masks)


def groups(model):
    """Decay for matrices only, as trainers have it."""
    return [
        {"params": [p for p in model.parameters() if p.dim() == 2]},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]


def as_integers(tensor):
    return tensor.detach().view({4: torch.int32, 2: torch.int16}[tensor.element_size()])


def assert_same(model, other):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(as_integers(p), as_integers(q)), name


def backward(model, generator, passes=2):
    for _ in range(passes):
        inputs = torch.randn(16, 24, generator=generator).to(next(model.parameters()).dtype)
        model(inputs).float().square().mean().backward()


def train(model, optimizer, steps=10, updates=None, clip=None, seed=2):
    generator, norms = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model, generator)
        if clip is not None:
            compact = isinstance(updates, CompactUpdates)
            parameters = updates.masters() if compact else model.parameters()
            norms.append(nn.utils.clip_grad_norm_(parameters, clip))
        optimizer.step()
    return norms


def both(name, dtype=torch.float32, **changes):
    """A model under compact updates, and the same one under dense ones."""
    runs = []
    for kind in (CompactUpdates, MaskedUpdates):
        model = network(dtype)
        optimizer = OPTIMIZERS[name](groups(model))
        runs.append((model, optimizer, kind(model, mask_of(model), optimizer, **changes)))
    return runs


@pytest.mark.parametrize("skip_frozen", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bitwise_the_trajectory_of_dense_masked_training(name, skip_frozen):
    (model, optimizer, updates), (dense, dense_optimizer, _) = both(name, skip_frozen=skip_frozen)
    train(model, optimizer)
    train(dense, dense_optimizer)
    assert updates.steps == 10
    assert_same(model, dense)
    assert not torch.equal(model[0].weight, network()[0].weight)


def test_clipping_by_the_norm_of_the_selected_gradients():
    (model, optimizer, updates), (dense, dense_optimizer, dense_updates) = both("adamw")
    norms = train(model, optimizer, updates=updates, clip=0.01)
    expected = train(dense, dense_optimizer, updates=dense_updates, clip=0.01)
    torch.testing.assert_close(torch.stack(norms), torch.stack(expected), rtol=1e-6, atol=0)
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert float(norms[0]) > 0.01


def test_fused_adamw():
    (model, optimizer, _), (dense, dense_optimizer, _) = both("adamw")
    for each in (optimizer, dense_optimizer):
        for group in each.param_groups:
            group["foreach"], group["fused"] = None, True
    train(model, optimizer)
    train(dense, dense_optimizer)
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bitwise_float32_weights_that_are_rounded_for_each_forward_pass(dtype):
    model, reference = network(dtype), network(dtype)
    mask = mask_of(model)
    optimizer = OPTIMIZERS["adamw"](groups(model))
    updates = CompactUpdates(model, mask, optimizer)
    masters = {n: nn.Parameter(p.detach().float()) for n, p in reference.named_parameters()}
    decayed = [masters[n] for n, p in model.named_parameters() if p.dim() == 2]
    others = [masters[n] for n, p in model.named_parameters() if p.dim() == 1]
    plain = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.0}], lr=1e-2, foreach=True
    )
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        for master in masters.values():
            master.grad = torch.zeros_like(master)
        for _ in range(2):  # accumulated in float32
            reference.zero_grad()
            backward(reference, generator, passes=1)
            for name, p in reference.named_parameters():
                selected = mask[name] if name in mask else torch.zeros(p.shape, dtype=torch.bool)
                masters[name].grad += torch.where(selected, p.grad.float(), 0)
        with torch.no_grad():
            for name, p in reference.named_parameters():
                if p.dim() == 2:  # decay of the selected weights
                    masters[name].copy_(torch.where(mask[name], masters[name] * (1 - 1e-2 * 0.1), masters[name]))
        plain.step()
        with torch.no_grad():
            for name, p in reference.named_parameters():
                p.copy_(masters[name])
    train(model, optimizer)
    assert_same(model, reference)
    values = updates.master_weights()
    assert list(values) == ["0.weight", "2.weight", "2.bias"]
    for name, value in values.items():
        assert torch.equal(value, masters[name].detach()[mask[name]])
        assert value.dtype == torch.float32


def test_small_updates_are_not_lost_in_bfloat16():
    moved = {}
    for kind in (CompactUpdates, MaskedUpdates):
        model = network(torch.bfloat16)
        mask, start = mask_of(model), {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
        updates = kind(model, mask, optimizer)
        train(model, optimizer, steps=4)
        values = master_weights(model, mask, updates)
        changed = [values[n] != start[n][mask[n]].float() for n in mask if mask.num_selected_in(n)]
        moved[kind] = float(torch.cat(changed).float().mean())
    assert moved[CompactUpdates] > 0.99
    assert moved[MaskedUpdates] < 0.5


def test_one_dense_gradient_at_a_time_and_sixteen_bytes_a_weight():
    model = network()
    mask = mask_of(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    at_once = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: at_once.append(sum(p.grad is not None for p in model.parameters()))
        )
    updates = CompactUpdates(model, mask, optimizer)
    backward(model, torch.Generator().manual_seed(0))
    assert set(at_once) == {1}
    assert all(p.grad is None for p in model.parameters())
    gradients = sum(master.grad.nbytes for master in updates.masters())
    optimizer.step()
    moments = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.dim())
    assert gradients + moments + sum(master.nbytes for master in updates.masters()) == 16 * mask.num_selected
    assert all(master.grad is None for master in updates.masters())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_run(poison):
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    mask = mask_of(model)
    updates = CompactUpdates(model, mask, optimizer)
    train(model, optimizer, steps=1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model[2].weight.register_hook(lambda grad: torch.where(mask["2.weight"], poison, grad))
    with pytest.raises(FloatingPointError, match=r"'2\.weight' is NaN or infinite at optimizer step 2"):
        train(model, optimizer, steps=1, updates=updates, clip=1.0)
    assert all(torch.equal(as_integers(p), as_integers(before[n])) for n, p in model.named_parameters())


def test_infinite_gradients_of_frozen_weights_do_no_harm():
    model = network()
    mask = mask_of(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    updates = CompactUpdates(model, mask, optimizer)
    model[2].weight.register_hook(lambda grad: torch.where(mask["2.weight"], grad, float("inf")))
    train(model, optimizer, updates=updates, clip=1.0)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd", "adam"])
def test_resumes_bitwise(name, dtype, tmp_path):
    """As trainers do it: the optimizer of the model's own parameters loads the state before the mask is attached."""
    whole, half = network(dtype), network(dtype)
    optimizers = [OPTIMIZERS[name](groups(model)) for model in (whole, half)]
    updates = [CompactUpdates(m, mask_of(m), o) for m, o in zip((whole, half), optimizers, strict=True)]
    for seed in (3, 4):
        train(whole, optimizers[0], steps=4, seed=seed)
    train(half, optimizers[1], steps=4, seed=3)
    torch.save(optimizers[1].state_dict(), tmp_path / "optimizer.pt")
    resumed = network(dtype)
    resumed.load_state_dict(half.state_dict())
    optimizer = OPTIMIZERS[name](groups(resumed))
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    again = CompactUpdates(resumed, mask_of(resumed), optimizer, saved_state=tmp_path / "optimizer.pt")
    train(resumed, optimizer, steps=4, seed=4)
    assert_same(resumed, whole)
    for value, expected in zip(again.master_weights().values(), updates[0].master_weights().values(), strict=True):
        assert torch.equal(value, expected)


def test_a_state_that_is_loaded_while_the_mask_is_attached():
    model, other = network(torch.bfloat16), network(torch.bfloat16)
    optimizers = [OPTIMIZERS["adamw"](m.parameters()) for m in (model, other)]
    for m, o in zip((model, other), optimizers, strict=True):
        CompactUpdates(m, mask_of(m), o)
    train(model, optimizers[0], steps=3)
    other.load_state_dict(model.state_dict())
    optimizers[1].load_state_dict(saved(optimizers[0]))
    for m, o in zip((model, other), optimizers, strict=True):
        train(m, o, steps=3, seed=5)
    assert_same(model, other)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, CompactAdamW])
def test_the_state_of_earlier_kinds_of_masked_runs_is_taken_over(kind):
    model, other = network(), network()
    mask = mask_of(model)
    optimizer = kind(groups(model), lr=1e-2, weight_decay=0.1)
    MaskedUpdates(model, mask, optimizer)
    train(model, optimizer, steps=3)
    other.load_state_dict(model.state_dict())
    resumed = torch.optim.AdamW(groups(other), lr=1e-2, weight_decay=0.1)
    resumed.load_state_dict(saved(optimizer))
    CompactUpdates(other, mask, resumed)
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, steps=3, seed=5)
    assert_same(model, other)


def test_another_masks_state_is_refused():
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    updates = CompactUpdates(model, mask_of(model), optimizer)
    train(model, optimizer, steps=1)
    updates.detach()
    with pytest.raises(ValueError, match="belongs to another mask"):
        CompactUpdates(model, mask_of(model, 0.2), optimizer)


def test_weights_that_something_else_changes_are_followed():
    (model, optimizer, _), (dense, dense_optimizer, _) = both("adamw")
    train(model, optimizer, steps=3)
    train(dense, dense_optimizer, steps=3)
    with torch.no_grad():
        for each in (model, dense):
            each[0].weight += 0.5
    train(model, optimizer, steps=3)
    train(dense, dense_optimizer, steps=3)
    assert_same(model, dense)


def test_detached_updates_leave_a_plain_optimizer():
    model, plain = network(), network()
    optimizer = torch.optim.SGD(groups(model), lr=0.1)
    CompactUpdates(model, mask_of(model), optimizer, skip_frozen=True).detach()
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 2]
    train(model, optimizer, steps=3)
    train(plain, torch.optim.SGD(groups(plain), lr=0.1), steps=3)
    assert_same(model, plain)


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree"])
def test_schedule_free_optimizers_write_what_they_evaluate(name):
    schedulefree = pytest.importorskip("schedulefree")
    model = network()
    start, mask = {n: p.detach().clone() for n, p in model.named_parameters()}, mask_of(model)
    optimizer = getattr(schedulefree, name)(model.parameters(), lr=1e-2, weight_decay=0.1)
    updates = CompactUpdates(model, mask, optimizer)
    optimizer.train()
    train(model, optimizer, steps=3)

    def check():
        for n, p in model.named_parameters():
            selected = mask[n] if n in mask else torch.zeros(p.shape, dtype=torch.bool)
            assert torch.equal(as_integers(p)[~selected], as_integers(start[n])[~selected])
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    training = check()
    optimizer.eval()
    evaluated = check()
    assert not torch.equal(training, evaluated)
    optimizer.train()
    torch.testing.assert_close(check(), training)
    updates.detach()
    optimizer.eval()  # trainers evaluate after training, too
    torch.testing.assert_close(check(), evaluated)


def test_an_optimizer_that_takes_a_closure():
    model, dense = network(), network()
    masks = mask_of(model)
    for each, kind in ((model, CompactUpdates), (dense, MaskedUpdates)):
        optimizer = torch.optim.LBFGS(each.parameters(), max_iter=4)
        kind(each, masks, optimizer)
        inputs = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))

        def closure(each=each, optimizer=optimizer, inputs=inputs):
            optimizer.zero_grad()
            loss = each(inputs).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model[0].weight, network()[0].weight)


@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_a_gradient_scaler_skips_change_nothing(fused):
    model, plain = network(), network()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, fused=fused) for m in (model, plain)]
    updates = CompactUpdates(model, mask_of(model), optimizers[0])
    CompactUpdates(plain, mask_of(plain), optimizers[1])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    inputs = torch.randn(16, 24, generator=torch.Generator().manual_seed(3))
    for overflow in (False, True, False):
        scaler.scale(model(inputs).square().mean()).backward()
        if overflow:
            updates.masters()[0].grad[0] = torch.inf
        scaler.step(optimizers[0])
        scaler.update()
        updates.zero_grad()
        if not overflow:
            plain(inputs).square().mean().backward()
            optimizers[1].step()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_what_is_not_possible_is_named():
    model = network()
    mask = mask_of(model)
    for optimizer, reason in [
        (CompactAdamW(model.parameters()), "the optimizer is CompactAdamW"),
        (torch.optim.Adafactor(model.parameters()), "Adafactor may update a weight by others of its tensor"),
    ]:
        with pytest.raises(ValueError, match=f"compact_training=True is not possible: {reason}"):
            attach_mask(model, mask, optimizer, compact=True)
        assert type(attach_mask(model, mask, optimizer, compact=None)) is MaskedUpdates


@pytest.mark.parametrize(("density", "kind"), [(0.05, CompactUpdates), (0.3, MaskedUpdates)])
def test_the_default_depends_on_the_density(density, kind):
    model = network()
    generator = torch.Generator().manual_seed(0)
    mask = WeightMask.from_dict(
        {n: torch.rand(p.shape, generator=generator) < density for n, p in model.named_parameters()}
    )
    updates = attach_mask(model, mask, torch.optim.AdamW(model.parameters()), compact=None)
    assert type(updates) is kind


# In trainers


@pytest.fixture(params=["WagleTrainer", "callback"])
def make_trainer(request, make_llama, make_set, arguments, word_tokenizer):
    """make_trainer(compact, dtype, **changes): WagleTrainer, or TRL's with the callback, and a random mask."""
    from trl import SFTConfig, SFTTrainer

    from wagle_trainer import WagleTrainer, WeightAttributionCallback

    def make(compact, dtype=torch.float32, **changes):
        model = make_llama(attention_dropout=0.1).to(dtype)
        settings = {
            "max_steps": 4,
            "density": 0.05,
            "gradient_accumulation_steps": 2,
            "optim": "adamw_torch",
        } | changes
        if request.param == "WagleTrainer":
            return WagleTrainer(
                model,
                arguments(**settings, attribution="random", compact_training=compact),
                forget_dataset=make_set(16),
                retain_dataset=make_set(16, seed=1),
                processing_class=word_tokenizer,
            )
        keys = settings.keys() | {"output_dir", "learning_rate", "weight_decay", "logging_steps", "report_to"}
        values = {k: v for k, v in arguments(**settings).to_dict().items() if k in keys - {"density"}}
        callback = WeightAttributionCallback(score="random", density=settings["density"], compact_training=compact)
        config = SFTConfig(
            **({"save_strategy": "no"} | values),
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            lr_scheduler_type="constant",
        )
        return SFTTrainer(
            model, config, train_dataset=make_set(40), processing_class=word_tokenizer, callbacks=[callback]
        )

    return make


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("max_grad_norm", [0.01, 0.0])
def test_a_trainers_weights_and_logs_are_those_of_dense_training(max_grad_norm, make_trainer, tmp_path):
    trainers = []
    for compact in (None, False):  # one after the other: making one seeds what the other draws
        trainers.append(make_trainer(compact, max_grad_norm=max_grad_norm, output_dir=str(tmp_path / str(compact))))
        trainers[-1].train()
    for p, q in zip(*(t.model.parameters() for t in trainers), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    norms = [[entry["grad_norm"] for entry in t.state.log_history if "grad_norm" in entry] for t in trainers]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert len(norms[0]) == 4
    assert min(norms[0]) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trainer_resumes_bitwise(dtype, make_trainer, tmp_path):
    whole = make_trainer(None, dtype, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = make_trainer(None, dtype, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert_same(resumed.model, whole.model)
    state = torch.load(tmp_path / "out" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    callbacks = [
        next(c for c in t.callback_handler.callbacks if hasattr(c, "master_weights")) for t in (whole, resumed)
    ]
    values = [callback.master_weights(t.model) for callback, t in zip(callbacks, (whole, resumed), strict=True)]
    mask = callbacks[0].mask
    assert sum(entry["exp_avg"].numel() for entry in state["state"].values()) == mask.num_selected
    for name, value in values[0].items():
        assert torch.equal(value, values[1][name])
        assert torch.equal(value.to(dtype), dict(whole.model.named_parameters())[name].detach()[mask[name]])
    if dtype == torch.bfloat16:
        assert any(not torch.equal(value, value.bfloat16().float()) for value in values[0].values())


def test_train_twice(make_trainer, weights_of):
    trainer = make_trainer(None)
    trainer.train()
    before = weights_of(trainer.model)
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_the_trainer_has_the_masters(make_llama, make_set, arguments, word_tokenizer):
    from wagle_trainer import WagleTrainer

    sets = {"forget_dataset": make_set(8), "retain_dataset": make_set(8, seed=1), "processing_class": word_tokenizer}
    trainer = WagleTrainer(make_llama().bfloat16(), arguments(attribution="random", density=0.05, max_steps=1), **sets)
    with pytest.raises(ValueError, match="no mask yet"):
        trainer.master_weights()
    trainer.train()
    values = trainer.master_weights()
    assert sum(map(len, values.values())) == trainer.mask.num_selected
    dense = WagleTrainer(make_llama(), arguments(attribution=None, max_steps=1), **sets)
    with pytest.raises(ValueError, match="attribution=None trains all of them"):
        dense.master_weights()
