"""`compact_optimizer` of WagleTrainer: when it is used, and that it changes nothing but the memory."""

import pytest
import torch

import wagle_trainer.masking.compact_choice
from wagle_trainer import WagleTrainer, WeightMask
from wagle_trainer.engines.ddp import DataParallel
from wagle_trainer.engines.fsdp2 import FSDP2
from wagle_trainer.masking.compact_adamw import CompactAdamW

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make_trainer(make_llama, make_set, arguments, word_tokenizer):
    def make(mask=None, **changes):
        return WagleTrainer(
            make_llama(attention_dropout=0.1),
            arguments(**({"optim": "adamw_torch", "warmup_steps": 2, "max_steps": 6} | changes)),
            forget_dataset=make_set(8),
            retain_dataset=make_set(12, seed=1),
            processing_class=word_tokenizer,
            mask=mask,
        )

    return make


def random_mask(model, density):
    generator = torch.Generator().manual_seed(0)
    return WeightMask.from_dict(
        {name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters()}
    )


def assert_same_bits(model, weights):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach().view(torch.int32), weights[name].view(torch.int32)), name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"density": 0.3}, CompactAdamW),
        ({"density": 0.1}, torch.optim.AdamW),  # all of training is compact
        ({"density": 0.1, "compact_training": False}, CompactAdamW),
        ({"density": 0.1, "compact_optimizer": True}, CompactAdamW),
        ({"density": 0.3, "compact_training": True}, torch.optim.AdamW),
        ({"density": 0.5, "optim": "adamw_torch_fused"}, CompactAdamW),
        ({"density": 0.51}, torch.optim.AdamW),
        ({"density": "auto"}, torch.optim.AdamW),
        ({"density": 0.51, "compact_optimizer": True}, CompactAdamW),
        ({"density": 0.3, "compact_optimizer": False}, torch.optim.AdamW),
        ({"density": 0.3, "optim": "sgd"}, torch.optim.SGD),
        ({"density": 0.3, "attribution": None}, torch.optim.AdamW),
        ({"density": 0.3, "attribution": None, "compact_optimizer": True}, torch.optim.AdamW),
    ],
)
def test_when_it_is_used(changes, expected, make_trainer):
    optimizer = make_trainer(**changes).create_optimizer()
    assert type(optimizer) is expected
    assert bool(optimizer.defaults["fused"]) == (changes.get("optim") == "adamw_torch_fused")


def test_the_density_of_a_given_mask_counts(make_trainer, make_llama):
    for density, expected in ((0.3, CompactAdamW), (0.7, torch.optim.AdamW)):
        trainer = make_trainer(mask=random_mask(make_llama(), density), density=1 - density)
        assert type(trainer.create_optimizer()) is expected


@pytest.mark.parametrize(("engine", "expected"), [(DataParallel, CompactAdamW), (FSDP2, torch.optim.AdamW)])
def test_engines(engine, expected, make_trainer, monkeypatch):
    automatic, required = make_trainer(), make_trainer(compact_optimizer=True)
    monkeypatch.setattr(wagle_trainer.masking.compact_choice, "current_engine", engine)
    assert type(automatic.create_optimizer()) is expected
    if expected is CompactAdamW:
        assert type(required.create_optimizer()) is expected
    else:
        with pytest.raises(ValueError, match="compact_optimizer=True does not work with FSDP"):
            required.create_optimizer()


def test_two_kinds_of_compactness_exclude_each_other(make_trainer):
    with pytest.raises(ValueError, match="leave one of them out"):
        make_trainer(compact_optimizer=True, compact_training=True).create_optimizer()


def test_an_optim_without_a_compact_form_is_refused(make_trainer):
    with pytest.raises(ValueError, match="compact_optimizer=True needs optim='adamw_torch_fused'.*not 'sgd'"):
        make_trainer(optim="sgd", compact_optimizer=True).train()


@pytest.mark.parametrize("density", [0.05, 0.9])
def test_the_weights_are_those_of_the_dense_optimizer(density, make_trainer, weights_of):
    runs = {}
    for compact in (True, False):
        runs[compact] = make_trainer(density=density, compact_optimizer=compact)
        runs[compact].train()
        assert runs[compact].mask.density == pytest.approx(density, abs=1e-3)
    assert_same_bits(runs[True].model, weights_of(runs[False].model))
    grad_norms = [[e["grad_norm"] for e in run.state.log_history if "grad_norm" in e] for run in runs.values()]
    assert grad_norms[0] == grad_norms[1]
    moments = [
        sum(state["exp_avg"].numel() for state in run.optimizer.optimizer.state.values()) for run in runs.values()
    ]
    assert moments[0] == runs[True].mask.num_selected < moments[1]


def test_the_fused_optimizer_comes_close(make_trainer, weights_of):
    runs = {}
    for compact in (None, False):
        runs[compact] = make_trainer(optim="adamw_torch_fused", compact_optimizer=compact)
        runs[compact].train()
    weights = weights_of(runs[False].model)
    for name, parameter in runs[None].model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-4, atol=1e-5)


def test_only_selected_weights_move(make_trainer, weights_of, assert_only_selected_moved):
    trainer = make_trainer(optim="adamw_torch_fused")
    before = weights_of(trainer.model)
    trainer.train()
    assert_only_selected_moved(before, trainer.model, trainer.mask)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_resume_bit_for_bit(optim, make_trainer, weights_of, tmp_path):
    whole = make_trainer(optim=optim, save_strategy="steps", save_steps=2)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-4"
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert sum(state["exp_avg"].numel() for state in saved.values()) == whole.mask.num_selected
    resumed = make_trainer(optim=optim)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_bits(resumed.model, weights_of(whole.model))


def test_resume_from_a_dense_checkpoint(make_trainer, weights_of, tmp_path):
    whole = make_trainer(compact_optimizer=False, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert type(resumed.optimizer.optimizer) is CompactAdamW
    assert_same_bits(resumed.model, weights_of(whole.model))


def test_a_compact_checkpoint_needs_the_compact_optimizer(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match="saved by a compact optimizer.*compact_optimizer=True"):
        make_trainer(compact_optimizer=False).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_train_twice(make_trainer, weights_of):
    trainer = make_trainer()
    trainer.train()
    before = weights_of(trainer.model)
    trainer.train()
    moved = sum(int((p.detach() != before[name]).sum()) for name, p in trainer.model.named_parameters())
    assert 0 < moved <= trainer.mask.num_selected
