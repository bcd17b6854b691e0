"""No event moves a frozen weight, under any optimizer: each cell keeps all frozen bits, or is refused at the start."""

import contextlib
import inspect
import itertools

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from wagle_trainer.masking import CompactUpdates, MaskedUpdates, WeightMask
from wagle_trainer.masking.compact_adamw import CompactAdamW
from wagle_trainer.masking.masked_updates import _skips_missing_gradients


class DecaysEverything(torch.optim.Optimizer):
    """An optimizer of a user's own: it decays all parameters, also those without a gradient."""

    def __init__(self, params, lr=1e-2, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])


def torchs_optimizers():
    classes = [c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)]
    left_out = {torch.optim.Optimizer, torch.optim.SparseAdam}  # SparseAdam refuses dense gradients by itself
    return {c.__name__: c for c in classes if c not in left_out}


def installed():
    """Optimizers that Transformers has names for, as far as they are installed."""
    found = {"Adafactor (Transformers)": Adafactor}
    for module, names in {
        "schedulefree": ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"],
        "grokadamw": ["GrokAdamW"],
        "optimi": ["StableAdamW"],
    }.items():
        with contextlib.suppress(ImportError):
            found |= {name: getattr(__import__(module), name) for name in names}
    return found


CLASSES = (
    torchs_optimizers()
    | installed()
    | {"CompactAdamW": CompactAdamW, "an optimizer that decays all": DecaysEverything}
)
OPTIONS = {
    "AdamW": [{}, {"fused": True}, {"foreach": False}, {"amsgrad": True}, {"maximize": True}, {"eps": 0.0}],
    "CompactAdamW": [{}, {"fused": True}],
    "Adam": [{}, {"fused": True}],
    "SGD": [{}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "maximize": True}, {"fused": True}],
    "Adafactor (Transformers)": [{"relative_step": False, "scale_parameter": False}],
    # Where Triton is installed, it takes Triton's kernels on any machine, and they need a GPU.
    "StableAdamW": [{"triton": False}, {"decouple_lr": False, "triton": False}],
}
CELLS = [(name, options) for name in CLASSES for options in OPTIONS.get(name, [{}])]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def as_integers(tensor):
    return tensor.detach().view({4: torch.int32, 2: torch.int16}[tensor.element_size()])


def network(dtype):
    """A partly selected, a fully selected and a frozen matrix; no bias, since Muon updates matrices only."""
    torch.manual_seed(0)
    sizes = [24, 40, 16, 8]
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        model[0].weight[:, ::5] = -0.0
    return model


def mask_of(model):
    selected = torch.rand(model[0].weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    return WeightMask.from_dict(
        {
            "0.weight": selected,
            "1.weight": torch.ones(16, 40, dtype=torch.bool),
            "2.weight": torch.zeros(8, 16, dtype=torch.bool),
        }
    )


def make(name, options, parameters):
    """The optimizer with decay, where it has one."""
    known = inspect.signature(CLASSES[name]).parameters
    options = {"lr": 1e-2} | ({"weight_decay": 0.1} if "weight_decay" in known else {}) | options
    return CLASSES[name](parameters, **options)


class Run:
    """A masked run that compares the frozen weights with those of the start after each event."""

    def __init__(self, name, options, dtype, mask=None):
        self.model = network(dtype)
        self.start = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.optimizer = make(name, options, self.model.parameters())
        self.mask = mask or mask_of(self.model)
        self.updates = MaskedUpdates(self.model, self.mask, self.optimizer)
        self.generator = torch.Generator().manual_seed(2)
        self.dtype = dtype
        self.poison = False
        self.model[0].weight.register_hook(self._poison)

    def _poison(self, gradient):
        if not self.poison:
            return gradient
        gradient = gradient.clone()
        gradient[tuple(self.mask["0.weight"].nonzero()[0])] = self.poison
        return gradient

    def mode(self, name):
        if callable(getattr(self.optimizer, name, None)):
            getattr(self.optimizer, name)()
        self.check(name)

    def step(self, clip=True):
        def closure():
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(8, 24, generator=self.generator).to(self.dtype)).float().square().mean()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            return loss

        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(closure)
        else:
            closure()
            self.optimizer.step()
        self.check("step")

    def moved(self):
        return {n: as_integers(p) != as_integers(self.start[n]) for n, p in self.model.named_parameters()}

    def check(self, event):
        for name, moved in self.moved().items():
            assert not bool((moved & ~self.mask[name]).any()), f"a frozen weight of {name} moved in {event}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "options"), CELLS, ids=lambda value: str(value))
def test_steps_with_decay_and_evaluation_in_between(name, options, dtype):
    run = Run(name, options, dtype)
    run.mode("train")
    # In float16, an eps that is zero there makes NaNs of selected weights, and so of the next step's gradients.
    with contextlib.suppress(FloatingPointError) if dtype == torch.float16 else contextlib.nullcontext():
        for _ in range(6):
            run.step()
        run.mode("eval")
        run.mode("train")
        run.step()
    run.updates.detach()
    run.mode("eval")  # trainers evaluate after training, too
    if dtype == torch.float32:
        assert run.moved()["1.weight"].float().mean() > 0.5  # the selected weights are trained


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "not clipped"])
@pytest.mark.parametrize(("name", "options"), CELLS, ids=lambda value: str(value))
def test_a_gradient_that_is_not_finite_stops_the_run_before_a_weight_changes(name, options, clip, poison):
    run = Run(name, options, torch.float32)
    run.mode("train")
    run.step(clip)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.poison = poison
    with pytest.raises(FloatingPointError, match=r"gradient of '0\.weight' is NaN or infinite at optimizer step 2"):
        run.step(clip)
    for n, parameter in run.model.named_parameters():
        assert torch.equal(as_integers(parameter), as_integers(before[n]))
    run.poison = False
    run.step(clip)  # whoever catches the error can go on
    assert all(bool(torch.isfinite(p).all()) for p in run.model.parameters())


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adam", "RMSprop"])
def test_flushed_denormals(name):
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        model = network(torch.float32)
        with torch.no_grad():
            model[0].weight[0].view(torch.int32)[:] = 1  # the least denormal
        run = Run(name, {}, torch.float32)
        with torch.no_grad():
            run.model[0].weight.copy_(model[0].weight)
        run.start["0.weight"].copy_(model[0].weight)
        for _ in range(2):
            run.step()
        assert bool((run.start["0.weight"][0].view(torch.int32) == 1).all())
    finally:
        torch.set_flush_denormal(False)


def test_an_eps_that_is_zero_in_float16_is_warned_of(caplog):
    model = network(torch.float16)
    for options, warned in (({}, True), ({"fused": True}, False), ({"eps": 1e-6}, False)):
        caplog.clear()
        with caplog.at_level("WARNING", logger="wagle_trainer"):
            MaskedUpdates(model, mask_of(model), make("AdamW", options, model.parameters())).detach()
        assert ("eps=1e-08 is zero in the format of the weights" in caplog.text) == warned


def test_a_learning_rate_that_is_not_finite_moves_no_frozen_weight():
    run = Run("AdamW", {}, torch.float32)
    run.step()
    run.optimizer.param_groups[0]["lr"] = float("nan")
    run.step()


def test_a_parameter_that_is_unfrozen_later_stays_as_it_is():
    model = network(torch.float32)
    model[1].weight.requires_grad_(False)
    start = model[1].weight.detach().clone()
    mask = WeightMask.from_dict({"0.weight": mask_of(model)["0.weight"]})
    for name in ("AdamW", "an optimizer that decays all"):
        optimizer = make(name, {}, model.parameters())
        updates = MaskedUpdates(model, mask, optimizer)
        model[1].weight.requires_grad_(True)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 24)).square().mean().backward()
            optimizer.step()
        assert updates.steps == 2
        assert torch.equal(model[1].weight, start)
        updates.detach()
        model[1].weight.requires_grad_(False)


def test_frozen_tensors_under_an_optimizer_that_takes_a_closure():
    """Its gradients come within the step: a frozen tensor's is zero then, and would be decayed."""
    for name in ("SGD", "AdamW", "CompactAdamW"):
        run = Run(name, {}, torch.float32)

        def closure(run=run):
            run.optimizer.zero_grad()
            loss = run.model(torch.randn(4, 24)).square().mean()
            loss.backward()
            return loss

        run.optimizer.step(closure)
        run.check("step")
        assert run.moved()["1.weight"].float().mean() > 0.5


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("poisoned", [1, 2, 3])
def test_a_closure_that_fails_within_the_step_leaves_all_weights_as_they_were(poisoned, compact):
    """LBFGS has moved the selected weights by the time that it asks for the second gradient."""
    torch.manual_seed(0)
    model = network(torch.float32)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    kind = CompactUpdates if compact else MaskedUpdates
    updates, calls, inputs = kind(model, mask_of(model), optimizer), [], torch.randn(4, 24)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def closure():
        calls.append(0)
        updates.zero_grad() if compact else optimizer.zero_grad()
        loss = model(inputs).square().mean() * (float("nan") if len(calls) == poisoned else 1.0)
        loss.backward()
        return loss

    with pytest.raises(FloatingPointError, match="NaN or infinite at optimizer step 1"):
        optimizer.step(closure)
    assert len(calls) == poisoned
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_a_mask_that_selects_nothing_is_refused():
    model = network(torch.float32)
    mask = mask_of(model)
    with pytest.raises(ValueError, match="selects none of its 1,728 weights"):
        MaskedUpdates(model, mask & ~mask, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(("option", "message"), [({"max_norm": 1.0}, "max_norm"), ({"sparse": True}, "sparse=False")])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_that_no_mask_controls_are_refused(kind, option, message):
    model = nn.Sequential(kind(10, 4, **option))
    mask = WeightMask.from_dict({"0.weight": torch.rand(10, 4) < 0.5})
    with pytest.raises(ValueError, match=f"embedding '0'.*{message}"):
        MaskedUpdates(model, mask, torch.optim.SGD(model.parameters(), lr=0.1))


class AdaLomo(torch.optim.SGD):
    """Stands for the class of this name; lomo-optim needs DeepSpeed."""


def test_optimizers_that_step_within_the_backward_pass_are_refused():
    model = network(torch.float32)
    optimizers = [AdaLomo(model.parameters(), lr=0.1), LayerWiseDummyOptimizer(optimizer_dict={}, lr=0.1)]
    for optimizer in optimizers:
        with pytest.raises(ValueError, match=f"{type(optimizer).__name__}.*within the backward pass"):
            MaskedUpdates(model, mask_of(model), optimizer)


def test_torchs_optimizers_in_backward_are_refused():
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = network(torch.float32)
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    with pytest.raises(ValueError, match="within the backward pass"):
        MaskedUpdates(model, mask_of(model), torch.optim.SGD(model.parameters(), lr=0.1))


def test_which_optimizers_skip_parameters_without_gradients():
    """Those that are known to need no copies of frozen tensors do leave a tensor without a gradient alone."""
    for name, options in CELLS:
        parameters = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))]
        optimizer = make(name, options, parameters)
        if not _skips_missing_gradients(optimizer):
            continue
        parameters[0].grad = torch.ones(4, 4)
        optimizer.step()
        assert torch.equal(parameters[1], torch.ones(4, 4)), name


# In trainers


@pytest.fixture(params=["WagleTrainer", "callback"])
def make_trainer(request, make_llama, make_set, arguments, word_tokenizer):
    """make_trainer(**changes): WagleTrainer, or TRL's with the callback, and a random mask."""
    from trl import SFTConfig, SFTTrainer

    from wagle_trainer import WagleTrainer, WeightAttributionCallback

    def make(**changes):
        model = make_llama()
        settings = {"max_steps": 3, "density": 0.3, "attribution": "random", "optim": "adamw_torch"} | changes
        if request.param == "WagleTrainer":
            return WagleTrainer(
                model,
                arguments(**settings),
                forget_dataset=make_set(8),
                retain_dataset=make_set(8, seed=1),
                processing_class=word_tokenizer,
            )
        keys = {"max_steps", "optim", "output_dir", "learning_rate", "weight_decay", "max_grad_norm"}
        values = {key: value for key, value in arguments(**settings).to_dict().items() if key in keys}
        callback = WeightAttributionCallback(score=settings["attribution"], density=settings["density"])
        config = SFTConfig(**values, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no")
        return SFTTrainer(
            model, config, train_dataset=make_set(8), processing_class=word_tokenizer, callbacks=[callback]
        )

    return make


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_trainers_stop_at_a_gradient_that_is_not_finite(max_grad_norm, make_trainer, weights_of):
    trainer = make_trainer(max_grad_norm=max_grad_norm)
    parameter = trainer.model.model.layers[0].mlp.up_proj.weight
    calls = []

    def poison(gradient):
        calls.append(None)
        return gradient if len(calls) < 2 else torch.full_like(gradient, float("nan"))

    parameter.register_hook(poison)
    before = []
    step = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: (before.append(weights_of(trainer.model)), step(*args, **kwargs))[
        1
    ]
    with pytest.raises(FloatingPointError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight'.*step 2"):
        trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(as_integers(parameter), as_integers(before[-1][name])), name


def test_layer_wise_optimizers_are_refused_before_the_attribution(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.optimizer = LayerWiseDummyOptimizer(optimizer_dict={}, lr=0.1)
    trainer.create_optimizer = lambda *_: trainer.optimizer
    monkeypatch.setattr("wagle_trainer.attribution.attribution_callback.attribute", None)
    with pytest.raises(ValueError, match="within the backward pass"):
        trainer.train()
