"""Adapters with float32 values over a base in 16 bits: saved as they are, applied as their rounding."""

import copy

import pytest
import torch
from peft import PeftModel

from wagle_trainer import WagleTrainer, WeightMask
from wagle_trainer.adapters import SparseAdapter, compose, merge, verify
from wagle_trainer.adapters.adapter import AdapterMismatchError, base_digests

DTYPES = [torch.bfloat16, torch.float16]
IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def request_of(change):
    """request_of(base, seed) -> (trained model, its adapter of float32 masters)."""

    def make(base, seed):
        tuned, masks = change(base, 0.3, seed)
        mask = WeightMask.from_dict(masks)
        # Between two numbers of the model's format, nearer to the model's own value.
        masters = {n: p.detach()[masks[n]].float() * (1 + 2**-13) for n, p in tuned.named_parameters()}
        return tuned, SparseAdapter.from_mask(tuned, mask, base_digests(base, mask), masters=masters)

    return make


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_in_the_file_and_rounded_in_the_model(make_net, request_of, same_bits, tmp_path, dtype):
    base = make_net(dtype=dtype)
    tuned, adapter = request_of(base, 1)
    assert all(sparse.values.dtype == torch.float32 for sparse in adapter.values())
    assert any(not torch.equal(sparse.values, sparse.values.to(dtype).float()) for sparse in adapter.values())
    adapter.save_pretrained(tmp_path)
    loaded = SparseAdapter.from_pretrained(tmp_path, model=base)
    assert loaded == adapter and loaded.base_dtypes == adapter.base_dtypes
    assert all(torch.equal(loaded[name].values, adapter[name].values) for name in adapter)
    assert verify(tmp_path, base)["valid"]
    merged = merge(copy.deepcopy(base), tmp_path)
    assert same_bits(merged, tuned)
    with pytest.raises(AdapterMismatchError, match="merged into this model already"):
        loaded.check(merged)


def test_peft_switches_merges_and_saves_them_exactly(make_net, request_of, same_bits, tmp_path):
    base = make_net(dtype=torch.bfloat16)
    tuned, adapter = request_of(base, 1)
    adapter.save_pretrained(tmp_path / "one")
    before, expected = base(IDS), tuned(IDS)
    untouched = copy.deepcopy(base)
    adapted = PeftModel.from_pretrained(base, tmp_path / "one")
    assert torch.equal(adapted(IDS), expected)
    with adapted.disable_adapter():
        assert torch.equal(adapted(IDS), before)
    adapted.save_pretrained(tmp_path / "active")
    adapted.merge_adapter()
    assert torch.equal(adapted(IDS), expected)
    adapted.save_pretrained(tmp_path / "merged")
    for state in ("active", "merged"):
        assert SparseAdapter.from_pretrained(tmp_path / state) == adapter
    assert same_bits(adapted.unload(), untouched)


def test_sums_are_of_the_masters_and_rounded_once(make_net, request_of, same_bits, tmp_path):
    base = make_net(dtype=torch.bfloat16)
    requests = [request_of(base, seed)[1] for seed in (1, 2)]
    both = compose(requests, "sum", base)
    name = "down.weight"
    before = base.get_parameter(name).detach().double().flatten()
    expected = before.clone()
    for adapter in requests:
        expected[adapter[name].index] += adapter[name].values.double() - before[adapter[name].index]
    assert torch.equal(both[name].values, expected[both[name].index].float())
    merged = merge(copy.deepcopy(base), both)
    for number, adapter in enumerate(requests):
        adapter.save_pretrained(tmp_path / str(number))
    adapted = PeftModel.from_pretrained(base, tmp_path / "0", "a")
    adapted.load_adapter(tmp_path / "1", "b")
    adapted.base_model.set_adapter(["a", "b"], combine="sum")
    assert torch.equal(adapted(IDS), merged(IDS))
    assert same_bits(adapted.merge_and_unload(), merged)


def test_with_an_adapter_of_rounded_values(make_net, request_of, change, same_bits):
    base = make_net(dtype=torch.bfloat16)
    exact = request_of(base, 1)[1]
    tuned, masks = change(base, 0.3, 2)
    mask = WeightMask.from_dict(masks)
    rounded = SparseAdapter.from_mask(tuned, mask, base_digests(base, mask))
    both = compose([exact, rounded], "last")
    assert both["down.weight"].values.dtype == torch.float32
    in_turn = merge(copy.deepcopy(base), exact)
    merge(in_turn, rounded, ignore_base_mismatch=True)
    assert same_bits(merge(copy.deepcopy(base), both), in_turn)


def test_another_format_of_the_base_is_named(make_net, request_of, tmp_path):
    base = make_net(dtype=torch.bfloat16)
    request_of(base, 1)[1].save_pretrained(tmp_path)
    for other, named in ((torch.float32, "float32"), (torch.float16, "float16")):
        with pytest.raises(AdapterMismatchError, match=f"bfloat16 in the adapter and torch.{named} in the model"):
            PeftModel.from_pretrained(make_net(dtype=other), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_training_saves_and_resumes(make_llama, make_set, arguments, word_tokenizer, same_bits, tmp_path):
    def make():
        return WagleTrainer(
            make_llama().bfloat16(),
            arguments(
                attribution="random",
                density=0.05,
                save_adapter=True,
                adapter_masters=True,
                save_strategy="steps",
                save_steps=2,
                learning_rate=1e-5,
                optim="adamw_torch",
            ),
            forget_dataset=make_set(8),
            retain_dataset=make_set(12, seed=1),
            processing_class=word_tokenizer,
        )

    trainer = make()
    trainer.train()
    trainer.save_model()
    adapter = SparseAdapter.from_pretrained(tmp_path / "out")
    masters = trainer.master_weights()
    assert all(torch.equal(adapter[name].values, masters[name]) for name in adapter)
    assert same_bits(merge(make_llama().bfloat16(), adapter), trainer.model)
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    again = resumed.master_weights()
    assert all(torch.equal(again[name], masters[name]) for name in masters)
