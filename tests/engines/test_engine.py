"""Engines state what they can; those that weight masks do not work on are refused by name, before any work."""

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from wagle_trainer.engines import engine as engines
from wagle_trainer.engines.engine import UnsupportedEngine, current_engine
from wagle_trainer.engines.zero import WithoutHooks
from wagle_trainer.losses.objective import Objective


@pytest.fixture
def set_up(monkeypatch):
    """set_up(type, fsdp_version=..., use_orig_params=..., zero_stage=...): pretend that accelerate runs this engine."""

    def pretend(kind: DistributedType, zero_stage: int | None = None, **fsdp):
        state = SimpleNamespace(
            distributed_type=kind,
            fsdp_plugin=SimpleNamespace(**({"fsdp_version": 2, "use_orig_params": True} | fsdp)),
            deepspeed_plugin=SimpleNamespace(zero_stage=zero_stage),
        )

        class State:
            _shared_state: ClassVar = {"distributed_type": kind}

            def __new__(cls):
                return state

        monkeypatch.setattr(engines, "AcceleratorState", State)

    return pretend


@pytest.mark.parametrize(
    ("engine", "has_mask", "masks_gradients"),
    [
        ({"kind": DistributedType.NO}, False, False),
        ({"kind": DistributedType.MULTI_GPU}, False, False),
        ({"kind": DistributedType.FSDP}, False, False),
        ({"kind": DistributedType.FSDP, "fsdp_version": 1}, True, True),
        ({"kind": DistributedType.DEEPSPEED, "zero_stage": 1}, False, False),
        ({"kind": DistributedType.DEEPSPEED, "zero_stage": 2}, False, False),
        ({"kind": DistributedType.DEEPSPEED, "zero_stage": 3}, True, False),
    ],
)
def test_supported(engine, has_mask, masks_gradients, set_up):
    set_up(**engine)
    current_engine().check(has_mask=has_mask, masks_gradients=masks_gradients)


@pytest.mark.parametrize(
    ("engine", "has_mask", "masks_gradients", "message"),
    [
        ({"kind": DistributedType.FSDP, "fsdp_version": 1}, True, False, "FSDP1 .*callback alone.*WagleTrainer"),
        (
            {"kind": DistributedType.FSDP, "fsdp_version": 1, "use_orig_params": False},
            True,
            True,
            "fsdp_use_orig_params: true",
        ),
        ({"kind": DistributedType.DEEPSPEED, "zero_stage": 0}, True, True, "not stage 0"),
        ({"kind": DistributedType.DEEPSPEED, "zero_stage": 3}, False, False, "ZeRO-3 .*cli attribute.*mask_path"),
        ({"kind": DistributedType.MEGATRON_LM}, True, True, "MEGATRON_LM"),
        ({"kind": DistributedType.XLA}, True, True, "XLA"),
    ],
)
def test_refused(engine, has_mask, masks_gradients, message, set_up):
    set_up(**engine)
    with pytest.raises(ValueError, match=message):
        current_engine().check(has_mask=has_mask, masks_gradients=masks_gradients)


def test_forward_passes_that_gather_weights(set_up):
    for engine, together in [
        ({"kind": DistributedType.MULTI_GPU}, False),
        ({"kind": DistributedType.DEEPSPEED, "zero_stage": 2}, False),
        ({"kind": DistributedType.DEEPSPEED, "zero_stage": 3}, True),
        ({"kind": DistributedType.FSDP}, True),
    ]:
        set_up(**engine)
        assert current_engine().gathers_weights_in_forward is together


def test_what_sharded_weights_refuse(set_up, make_llama):
    """A penalty on the weights, and logits of a head that is not linear; on whole weights both work."""
    model = make_llama()
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))
    penalty = Objective.from_arguments("l1_sparse")
    logits = Objective.from_arguments("npo", {"retain_loss": "kl"})
    for engine in ({"kind": DistributedType.FSDP}, {"kind": DistributedType.DEEPSPEED, "zero_stage": 3}):
        set_up(**engine)
        Objective.from_arguments("npo").check_engine()
        logits.check_engine()
        logits.check_head(make_llama())
        with pytest.raises(ValueError, match="loss_type='l1_sparse' has a penalty.*shards"):
            penalty.check_engine()
        with pytest.raises(ValueError, match="retain_loss='kl' needs a copy.*is a Sequential"):
            logits.check_head(model)
    set_up(kind=DistributedType.DEEPSPEED, zero_stage=2)
    penalty.check_engine()
    logits.check_head(model)


@pytest.mark.parametrize("make", ["make_llama", "make_gpt2"])  # the second has tied weights
def test_gradients_without_hooks(make, request):
    model = request.getfixturevalue(make)().eval()
    fired = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(fired.append)
    ids = torch.randint(5, 50, (2, 6))
    bare = WithoutHooks(model)
    bare(input_ids=ids).logits.logsumexp(-1).sum().backward()
    assert not fired
    assert all(parameter.grad is None for parameter in model.parameters())
    model(input_ids=ids).logits.logsumexp(-1).sum().backward()
    assert fired
    found = dict(bare.named_parameters())
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)
        assert found[name].data_ptr() == parameter.data_ptr()  # the same weights, not a copy


def test_without_hooks_keeps_what_is_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert [p.requires_grad for p in WithoutHooks(model).parameters()] == [False, False, True, True]


def test_every_engine_of_the_folder_is_known():
    """A new engine is a file in the folder; nothing else lists it."""
    names = {engine.__name__ for engine in engines._engines()}
    assert names == {"SingleProcess", "DataParallel", "FSDP2", "FSDP1", "DeepSpeedZero"}


def test_one_process_is_the_engine_before_accelerate_is_set_up(monkeypatch):
    monkeypatch.setattr(engines, "AcceleratorState", SimpleNamespace(_shared_state={}))
    assert current_engine().name == "one process"


def test_unknown_engines_can_nothing(set_up):
    set_up(kind=DistributedType.XLA)
    engine = current_engine()
    assert isinstance(engine, UnsupportedEngine)
    assert not engine.holds_full_weights
    assert not engine.supports_compact_optimizer and not engine.supports_compact_training


def test_the_tests_that_watch_an_engine_exist():
    tests = Path(__file__).parents[1]
    texts = "".join((tests / name).read_text() for name in ("test_upstream.py", "test_distributed.py"))
    for engine in engines._engines():
        for name in engine.watched_by:
            assert f"def {name}(" in texts, (engine, name)
