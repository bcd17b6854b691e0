"""On a GPU: what runs on the CPU elsewhere in the tests. Chosen where there is a GPU, skipped elsewhere.

`WAGLE_TEST_DEVICE=cpu pytest tests/test_cuda.py -m cuda` runs the same tests on the CPU, where all but a few mean little: it
tells whether the tests themselves work.
"""

import copy
import os

import pytest
import torch

from wagle_trainer import WagleTrainer, attribute
from wagle_trainer.adapters import SparseAdapter, diff, merge
from wagle_trainer.masking import CompactUpdates

DEVICE = os.environ.get("WAGLE_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]
ON_GPU = DEVICE == "cuda"


@pytest.fixture
def batches(make_examples, pad_batches):
    return [
        [{key: value.to(DEVICE) for key, value in batch.items()} for batch in pad_batches(make_examples(8, seed), 4)]
        for seed in (1, 2)
    ]


@pytest.fixture
def run(make_llama, make_set, arguments, word_tokenizer):
    """run(resume, dtype, **arguments) -> a trainer that has trained on the device."""

    def train(resume=None, dtype=torch.float32, **changes):
        settings = {"use_cpu": not ON_GPU, "bf16": False, "max_steps": 4, "attribution": "random", "density": 0.05}
        trainer = WagleTrainer(
            make_llama().to(dtype),
            arguments(**settings | changes),
            forget_dataset=make_set(16),
            retain_dataset=make_set(16, seed=1),
            processing_class=word_tokenizer,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def cpu_weights(model):
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def num_moved(before, trainer):
    """Number of weights that training has changed; all of them are selected ones."""
    moved = 0
    for name, weight in cpu_weights(trainer.model).items():
        changed = before[name].view(torch.int32) != weight.view(torch.int32)
        assert not (changed & ~trainer.mask[name]).any()
        moved += int(changed.sum())
    return moved


@pytest.mark.parametrize("score", ["wagle", "snip", "fisher", "wanda"])
@pytest.mark.parametrize("scope", ["global", "row"])
def test_masks_are_those_of_the_cpu(make_llama, batches, score, scope):
    here = attribute(make_llama().to(DEVICE), *batches, score=score, scope=scope, density=0.1, progress=False)
    on_cpu = [[{key: value.cpu() for key, value in batch.items()} for batch in one] for one in batches]
    there = attribute(make_llama(), *on_cpu, score=score, scope=scope, density=0.1, progress=False)
    assert here.num_selected == there.num_selected
    assert here.overlap(there) > 0.99


def test_gradients_in_host_memory_change_no_bit(make_llama, batches):
    for dtype in (torch.float32, torch.bfloat16):
        model = make_llama().to(DEVICE, dtype)
        masks = [attribute(model, *batches, density=0.1, offload=where, progress=False) for where in (None, "cpu")]
        assert masks[0].digest == masks[1].digest


@pytest.mark.skipif(not ON_GPU, reason="the allocator of a GPU tells the peak")
def test_host_offload_holds_one_gradient_tensor(make_llama, batches):
    model = make_llama(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8).to(DEVICE)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attribute(model, *batches, density=0.1, offload="cpu", progress=False)
    assert torch.cuda.max_memory_allocated() - before < 0.5 * size


@pytest.mark.parametrize("changes", [{}, {"density": 0.8}, {"density": 0.3, "compact_optimizer": True}])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_only_selected_weights_move(run, make_llama, changes, optim):
    if changes.get("compact_optimizer") and optim == "sgd":
        pytest.skip("CompactAdamW is an AdamW")
    before, trainer = cpu_weights(make_llama()), run(optim=optim, **changes)
    assert num_moved(before, trainer) > 0.5 * trainer.mask.num_selected


@pytest.mark.parametrize("loss", ["npo", "simnpo", "rmu", "undial", "grad_diff"])
def test_losses_are_those_of_the_cpu(run, loss):
    kwargs = {"loss_kwargs": {"layer": 1}} if loss == "rmu" else {}
    here, there = (run(loss_type=loss, use_cpu=cpu, **kwargs) for cpu in (not ON_GPU, True))
    logs = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (here, there)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("density", [0.05, 0.8])
def test_resuming_changes_no_bit(run, tmp_path, density):
    whole = run(density=density, save_strategy="steps", save_steps=2)
    expected = cpu_weights(whole.model)
    resumed = run(density=density, resume=str(tmp_path / "out" / "checkpoint-2"))
    assert all(torch.equal(expected[name], weight) for name, weight in cpu_weights(resumed.model).items())


def test_bfloat16_masters_move(run, make_llama):
    before, trainer = cpu_weights(make_llama().bfloat16()), run(dtype=torch.bfloat16, learning_rate=1e-5)
    assert isinstance(trainer._attribution._last_updates, CompactUpdates)
    masters = trainer.master_weights()
    moved = sum(int((values != before[name][trainer.mask[name]].float()).sum()) for name, values in masters.items())
    assert moved > 0.9 * trainer.mask.num_selected


@pytest.mark.parametrize("density", [0.05, 0.8])
@pytest.mark.parametrize(
    "format", ["bf16", pytest.param("fp16", marks=pytest.mark.skipif(not ON_GPU, reason="a GPU scales"))]
)
def test_autocast_and_gradient_scaling(run, make_llama, format, density):
    before, trainer = cpu_weights(make_llama()), run(density=density, **{format: True})
    # A scaler skips steps until its scale is low enough, which may be all of so few.
    assert num_moved(before, trainer) > (0.5 * trainer.mask.num_selected if format == "bf16" else -1)


def test_compiled_steps(run, make_llama):
    before, trainer = cpu_weights(make_llama()), run(torch_compile=True, torch_compile_backend="eager")
    assert num_moved(before, trainer) > 0.5 * trainer.mask.num_selected


def test_adapters(run, make_llama, tmp_path):
    from peft import PeftModel

    trainer = run(save_adapter=True)
    trainer.save_model()
    base = make_llama().to(DEVICE).eval()
    ids = torch.arange(5, 25, device=DEVICE).view(2, 10)
    untouched = base(ids).logits
    expected = merge(copy.deepcopy(base), tmp_path / "out")(ids).logits
    assert not torch.equal(expected, untouched)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(adapted(ids).logits, expected)
    with adapted.disable_adapter():
        assert torch.equal(adapted(ids).logits, untouched)
    adapted.merge_adapter()
    assert torch.equal(adapted(ids).logits, expected)
    adapted.unmerge_adapter()
    base = adapted.unload()
    assert torch.equal(base(ids).logits, untouched)
    tuned = merge(copy.deepcopy(base), tmp_path / "out")
    assert diff(base, tuned).num_values <= SparseAdapter.from_pretrained(tmp_path / "out").num_values
