"""`SparseAdapter`: what is saved is what is loaded, and nothing else is accepted."""

import copy
import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wagle_trainer import WeightMask
from wagle_trainer.adapters import AdapterMismatchError, SparseAdapter, SparseValues, diff, merge, verify
from wagle_trainer.adapters.adapter import CONFIG_NAME, WEIGHTS_NAME, base_digests
from wagle_trainer.adapters.sparse import positions_layout, put, swap, take

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DENSITIES = st.sampled_from([0.002, 0.02, 0.05, 0.3, 0.9, 1.0])


@pytest.fixture
def saved(make_net, change, tmp_path):
    """(base, tuned, folder with the adapter)"""
    base = make_net(width=16)
    tuned, _ = change(base, 0.1, 1)
    diff(base, tuned).save_pretrained(tmp_path / "adapter")
    return base, tuned, tmp_path / "adapter"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_base_and_adapter_are_the_tuned_model(data, make_net, change, same_bits, tmp_path_factory):
    base = make_net(
        data.draw(st.integers(0, 99)),
        data.draw(st.integers(2, 40)),
        data.draw(st.integers(1, 12)),
        data.draw(st.integers(1, 3)),
        data.draw(st.booleans()),
        data.draw(st.sampled_from(DTYPES)),
    )
    tuned, masks = change(base, data.draw(DENSITIES), data.draw(st.integers(0, 99)), wild=data.draw(st.booleans()))
    if not any(bool(mask.any()) for mask in masks.values()):
        return
    adapter, before = diff(base, tuned), copy.deepcopy(base)
    assert {name for name, mask in masks.items() if bool(mask.any())} == set(adapter)
    for name, sparse in adapter.items():
        assert torch.equal(sparse.index, masks[name].reshape(-1).nonzero().view(-1))
        assert torch.equal(adapter.mask[name], masks[name])
    folder = tmp_path_factory.mktemp("adapter")
    adapter.save_pretrained(folder)
    loaded = SparseAdapter.from_pretrained(folder, model=base)
    assert loaded == adapter and loaded.num_values == sum(int(mask.sum()) for mask in masks.values())
    assert same_bits(merge(base, loaded), tuned)
    assert same_bits(merge(base, diff(base, before)), before)
    # What a mask selects from a trained model is the same adapter, where all of it has changed.
    mask = WeightMask.from_dict(masks)
    assert SparseAdapter.from_mask(tuned, mask, base_digests(before, mask)) == adapter


@pytest.mark.usefixtures("anywhere")
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 99), st.sampled_from(DTYPES), st.booleans())
def test_positions(numel, density, seed, dtype, transposed):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(numel, 2, generator=generator).to(dtype)
    tensor = tensor.t() if transposed else tensor
    mask = torch.rand(tensor.shape, generator=generator) < density
    index = mask.reshape(-1).nonzero().view(-1)
    sparse = SparseValues.from_index(tuple(tensor.shape), index, tensor.reshape(-1)[index])
    assert sparse.positions.nbytes == min(-(-tensor.numel() // 8), 4 * len(index))
    assert torch.equal(sparse.index, index)
    assert torch.equal(take(tensor, sparse.positions), tensor[mask])
    other = torch.zeros(tensor.shape, dtype=dtype)
    put(other, sparse.positions, sparse.values)
    assert torch.equal(other, torch.where(mask, tensor, torch.zeros_like(tensor)))
    values, before = torch.ones(len(index), dtype=dtype), tensor.clone()
    swap(tensor, sparse.positions, values)
    assert torch.equal(tensor, torch.where(mask, torch.ones_like(before), before))
    assert torch.equal(values, before[mask])


def test_positions_beyond_the_stretches_that_are_worked_on_at_a_time():
    tensor = torch.arange(600_001.0)
    for index in (torch.arange(0, 600_001, 2), torch.tensor([0, 262_143, 262_144, 600_000])):
        sparse = SparseValues.from_index((600_001,), index, tensor[index])
        assert torch.equal(sparse.index, index) and torch.equal(take(tensor, sparse.positions), tensor[index])
        swap(tensor, sparse.positions, sparse.values)
        assert torch.equal(tensor, torch.arange(600_001.0))


def test_indices_of_tensors_that_32_bits_cannot_count():
    assert positions_layout(2**31, 5) == (torch.int32, 5)
    assert positions_layout(2**31 + 1, 5) == (torch.int64, 5)
    assert positions_layout(800, 25) == (torch.uint8, 100)
    assert positions_layout(808, 25) == (torch.int32, 25)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.001, 0.03, 0.05, 0.5, 0.9])
def test_size_on_disk(dtype, density, change, tmp_path):
    base = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 300)).to(dtype)
    tuned, masks = change(base, density, 0)
    weights, selected = sum(m.numel() for m in masks.values()), sum(int(m.sum()) for m in masks.values())
    diff(base, tuned).save_pretrained(tmp_path)
    content = (tmp_path / WEIGHTS_NAME).read_bytes()
    # The header has names, shapes and places: a constant for each tensor, whatever its size.
    header = 8 + struct.unpack("<Q", content[:8])[0]
    assert header + (tmp_path / CONFIG_NAME).stat().st_size < 1000 + 600 * len(masks)
    assert len(content) - header <= 1.01 * (selected * dtype.itemsize + min(weights / 8, 4 * selected))


# What does not fit


def test_unknown_format_version(saved):
    _, _, folder = saved
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"format_version": 2}))
    with pytest.raises(ValueError, match="adapter format version 2; this wagle_trainer reads 1"):
        SparseAdapter.from_pretrained(folder)


@pytest.mark.parametrize("place", [-1, -700, 0.6, 0.8])
def test_altered_file(place, saved):
    base, _, folder = saved
    content = bytearray((folder / WEIGHTS_NAME).read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(ValueError, match="altered or replaced"):
        SparseAdapter.from_pretrained(folder)
    report = verify(folder, base)
    assert not report["valid"] and "altered or replaced" in report["problems"][0]


@pytest.mark.parametrize(
    ("number", "positions"),
    [(3, [5, 2, 7]), (3, [2, 2, 7]), (3, [-1, 2, 7]), (3, [2, 7, 800]), (30, [255] * 4 + [0] * 96), (30, [0] * 100)],
)
def test_positions_that_no_adapter_has(number, positions):
    """Such as would be written beside the tensor, whatever the digest says of them."""
    dtype, size = positions_layout(800, number)
    assert size == len(positions)
    broken = SparseValues((800,), torch.tensor(positions, dtype=dtype), torch.zeros(number))
    adapter = SparseAdapter({"weight": broken}, {"weight": "0" * 64})
    with pytest.raises(AdapterMismatchError, match="invalid positions of 'weight'"):
        SparseAdapter.from_state_dict(adapter.state_dict(), adapter.config(), "the file")


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 16])
def test_bits_behind_the_last_entry(numel):
    packed = torch.full((-(-numel // 8),), 255, dtype=torch.uint8)
    spare = -numel % 8
    assert SparseValues((numel,), packed, torch.zeros(numel + spare)).is_valid() == (spare == 0)
    packed[-1] >>= spare
    assert SparseValues((numel,), packed, torch.zeros(numel)).is_valid()
    assert not SparseValues((numel,), packed, torch.zeros(numel + 1)).is_valid()


def test_weights_that_are_not_in_memory(saved, make_net):
    _, _, folder = saved
    with pytest.raises(ValueError, match="is not in memory.*load the model without offloading"):
        merge(make_net(width=16).to("meta"), folder)


def test_altered_digest_of_the_base(saved):
    _, _, folder = saved
    text = (folder / CONFIG_NAME).read_text()
    digest = json.loads(text)["tensors"]["down.weight"]["base_digest"]
    (folder / CONFIG_NAME).write_text(text.replace(digest, "0" * 64).replace("metadata_digest", "old"))
    with pytest.raises(AdapterMismatchError, match="altered or replaced"):
        SparseAdapter.from_pretrained(folder)


def test_truncated_and_replaced_files(saved, make_net, change, tmp_path):
    base, _, folder = saved
    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(content[:-3])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        SparseAdapter.from_pretrained(folder)
    for density, message in (
        (0.1, "differ in the size of|one of them was replaced"),
        (0.0005, "one of them was replaced"),
    ):
        diff(base, change(base, density, 7)[0]).save_pretrained(tmp_path / "other")
        (folder / WEIGHTS_NAME).write_bytes((tmp_path / "other" / WEIGHTS_NAME).read_bytes())
        with pytest.raises(AdapterMismatchError, match=message):
            SparseAdapter.from_pretrained(folder)
    (folder / CONFIG_NAME).write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="is of a 'LORA' adapter, not of a 'WAGLE' one"):
        SparseAdapter.from_pretrained(folder)
    (folder / CONFIG_NAME).write_text("{")
    with pytest.raises(ValueError, match="not a readable adapter configuration"):
        SparseAdapter.from_pretrained(folder)
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {CONFIG_NAME}"):
        SparseAdapter.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="neither a folder with a saved adapter nor a repository"):
        SparseAdapter.from_pretrained("nobody/nothing")


def test_another_base(saved, make_net, same_bits):
    base, _, folder = saved
    for other, message in (
        (make_net(1, width=16), "another base model .*tensors that it touches differ, first 'embedding.weight'"),
        (make_net(width=8), r"'embedding.weight' has shape \(19, 16\) in the adapter and \(19, 8\) in the model"),
        (make_net(width=16, dtype=torch.bfloat16), "is torch.float32 in the adapter and torch.bfloat16 in the model"),
        (make_net(width=16, tied=True), "'head.weight' is not in the model"),
    ):
        before = copy.deepcopy(other)
        with pytest.raises(AdapterMismatchError, match=message):
            merge(other, folder)
        assert same_bits(other, before)
        assert not verify(folder, other)["valid"]
    with pytest.raises(AdapterMismatchError, match="has shape"):
        merge(make_net(width=8), folder, ignore_base_mismatch=True)
    assert verify(folder, base) == {
        **SparseAdapter.from_pretrained(folder).describe(),
        "valid": True,
        "problems": [],
        "base_checked": True,
    }
    assert verify(folder)["valid"] and not verify(folder)["base_checked"]


def test_another_base_on_purpose(saved, make_net):
    _, tuned, folder = saved
    adapter = SparseAdapter.from_pretrained(folder)
    for dtype in (torch.float32, torch.bfloat16):
        other = make_net(1, width=16, dtype=dtype)
        merged = merge(copy.deepcopy(other), adapter, ignore_base_mismatch=True)
        for name, parameter in merged.named_parameters():
            expected = other.get_parameter(name)
            if name in adapter:
                expected = torch.where(adapter.mask[name], tuned.get_parameter(name).to(dtype), expected)
            assert torch.equal(parameter, expected)


@pytest.mark.parametrize("ignore", [False, True])
def test_merging_twice(ignore, saved, same_bits):
    base, tuned, folder = saved
    merge(base, folder)
    with pytest.raises(AdapterMismatchError, match="merged into this model already"):
        merge(base, folder, ignore_base_mismatch=ignore)
    assert same_bits(base, tuned)


def test_checkpoints_that_make_no_adapter(make_net):
    with pytest.raises(ValueError, match="do not differ"):
        diff(make_net(), make_net())
    with pytest.raises(AdapterMismatchError, match=r"not of the same model: 'head.weight' is not in the tuned one"):
        diff(make_net(), make_net(tied=True))
    with pytest.raises(AdapterMismatchError, match="differ in dtype: 'embedding.weight' is torch.float32 in the base"):
        diff(make_net(), make_net(dtype=torch.float16))


def test_checkpoints_in_folders(make_llama, change, tmp_path, same_bits):
    base = make_llama(tie_word_embeddings=True).bfloat16()
    tuned, _ = change(base, 0.05, 3)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    adapter = diff(tmp_path / "base", str(tmp_path / "tuned"))
    assert adapter == diff(base, tuned)
    assert adapter.info.base_model == str(tmp_path / "base") and adapter.info.task_type == "CAUSAL_LM"
    adapter.save_pretrained(tmp_path / "adapter")
    assert verify(tmp_path / "adapter", tmp_path / "base")["valid"]
    assert same_bits(merge(base, adapter), tuned)
    with pytest.raises(ValueError, match="holds an adapter, not a model"):
        diff(base, tmp_path / "adapter")


def test_what_it_says_of_itself(saved):
    _, _, folder = saved
    adapter = SparseAdapter.from_pretrained(folder)
    assert repr(adapter).startswith(f"SparseAdapter({len(adapter)} tensors, {adapter.num_values:,} values")
    assert len({adapter, SparseAdapter.from_pretrained(folder)}) == 1
    assert adapter.nbytes == sum(t.nbytes for t in adapter.state_dict().values())
    assert adapter.describe()["digest"] == json.loads((folder / CONFIG_NAME).read_text())["digest"]


@pytest.mark.parametrize(
    "change", [{"shape": None}, {"shape": "ab"}, {"dtype": "float33"}, {"num_values": None}, None]
)
def test_configuration_that_was_edited_is_refused_in_words(change, tmp_path):
    base, tuned = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    diff(base, tuned).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    if change is None:
        del config["tensors"]["weight"]["base_digest"]
    else:
        config["tensors"]["weight"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not a readable adapter configuration: 'tensors' has"):
        SparseAdapter.from_pretrained(tmp_path)
