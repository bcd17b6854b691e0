"""Damaged adapters: loaded right, or refused by an error that names the file and says what to do; in little memory."""

import copy
import random

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from wagle_trainer.adapters import SparseAdapter, compose, diff, verify
from wagle_trainer.adapters.adapter import CONFIG_NAME, KEY_PREFIX, WEIGHTS_NAME
from wagle_trainer.adapters.sparse import SparseValues

WAYS_OUT = ("Fetch it again", "Fetch both again", "Update wagle-trainer", "is of a", "Load ")


@pytest.fixture
def model(make_net):
    return make_net()


@pytest.fixture
def adapter(model, change, tmp_path):
    """Positions as bits and as indices; in tmp_path / "adapter"."""
    changed, _ = change(model, 0.3, 0)
    with torch.no_grad():
        changed.head.weight.copy_(model.head.weight)
        changed.head.weight[3, 2] += 1
    made = diff(model, changed)
    assert {sparse.positions.dtype for sparse in made.values()} == {torch.uint8, torch.int32}
    made.save_pretrained(tmp_path / "adapter")
    return made


def check_refusal(error: str, folder) -> None:
    assert str(folder) in error, error
    assert any(words in error for words in WAYS_OUT), error
    assert len(error) < 1000 + 2 * len(str(folder)), error


@pytest.mark.parametrize("damaged", [WEIGHTS_NAME, CONFIG_NAME])
def test_five_hundred_accidents_to_each_file(damaged, adapter, damage, tmp_path):
    folder, draw, refused = tmp_path / "adapter", random.Random(0), 0
    content = (folder / damaged).read_bytes()
    for _ in range(500):
        (folder / damaged).write_bytes(damage(content, draw))
        loaded, error = None, ""
        try:
            loaded = SparseAdapter.from_pretrained(folder)
        except ValueError as refusal:
            error = str(refusal)
        if loaded is None:
            check_refusal(error, folder)
            assert verify(folder)["problems"] == [error]
            refused += 1
        else:
            assert loaded == adapter and loaded.info.training == adapter.info.training
            assert all(torch.equal(loaded[n].index, adapter[n].index) for n in adapter)
    assert refused > 400


@pytest.mark.parametrize("damaged", [WEIGHTS_NAME, CONFIG_NAME])
def test_a_hundred_accidents_on_pefts_path(damaged, adapter, model, change, damage, tmp_path):
    """PEFT reads the configuration before it knows whose it is."""
    folder, draw, refused = tmp_path / "adapter", random.Random(1), 0
    content, ids = (folder / damaged).read_bytes(), torch.arange(6)[None]
    wanted = PeftModel.from_pretrained(copy.deepcopy(model), folder)(ids)
    for _ in range(100):
        (folder / damaged).write_bytes(damage(content, draw))
        try:
            loaded = PeftModel.from_pretrained(copy.deepcopy(model), folder)
        except ValueError as refusal:
            check_refusal(str(refusal), folder)
            refused += 1
        else:
            assert torch.equal(loaded(ids), wanted)
    assert refused > 80


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b'{"a": ' + b"[" * 200_000, b'{"peft_type": "WAGLE"}'], ids=range(5)
)
def test_configurations_that_are_none(content, adapter, model, tmp_path):
    (tmp_path / "adapter" / CONFIG_NAME).write_bytes(content)
    for load in (SparseAdapter.from_pretrained, PeftConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"adapter_config\.json (is|has|of)") as refusal:
            load(tmp_path / "adapter")
        check_refusal(str(refusal.value), tmp_path)


def test_a_method_of_another_name_is_no_bare_key_error(adapter, model, tmp_path):
    file = tmp_path / "adapter" / CONFIG_NAME
    file.write_text(file.read_text().replace('"WAGLE"', '"WAGLF"'))
    with pytest.raises(ValueError, match=r"adapter_config\.json is not a readable.*WAGLF.*Fetch it again"):
        PeftModel.from_pretrained(model, tmp_path / "adapter")


def test_other_methods_load_as_before(model, tmp_path):
    get_peft_model(model, LoraConfig(target_modules=["down"])).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).peft_type == "LORA"


def test_missing_files_are_named(adapter, model, tmp_path):
    (tmp_path / "adapter" / WEIGHTS_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {WEIGHTS_NAME}"):
        SparseAdapter.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(3, 1, dtype=torch.int32), torch.ones(3, dtype=torch.int64), torch.ones(3), torch.ones(0)],
    ids=["2-D", "int64", "float", "empty"],
)
@pytest.mark.parametrize("part", ["positions", "values"])
def test_positions_and_values_of_another_shape_or_dtype(part, tensor, adapter, tmp_path):
    state = adapter.state_dict()
    state[f"{KEY_PREFIX}head.weight.{part}"] = tensor
    save_file(state, tmp_path / "adapter" / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"differ in size or dtype of 'head\.weight'.*Fetch both again"):
        SparseAdapter.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("combine", ["last", "sum"])
def test_composing_takes_no_memory_for_a_claimed_shape(combine):
    """A file of two values may claim 10^15 weights: their bits would take 125 TB."""
    shape = (10**9, 10**6)
    parts = [
        SparseAdapter(
            {"w": SparseValues(shape, torch.tensor(index), torch.tensor(values))}, {"w": "the base's digest"}
        )
        for index, values in (([3, 7 * 10**14], [1.0, 2.0]), ([4, 5, 9 * 10**14], [3.0, 4.0, 5.0]))
    ]
    together = compose(parts, combine)
    assert together["w"].positions.tolist() == [3, 4, 5, 7 * 10**14, 9 * 10**14]
    assert together["w"].values.tolist() == [1.0, 3.0, 4.0, 2.0, 5.0]
    with pytest.raises(ValueError, match="2 weights of 'w' are set by more than one adapter"):
        compose([parts[0], parts[0]])


@pytest.mark.parametrize("density", [0.001, 0.5])
def test_overlaps_of_bits_and_of_positions_are_the_same(density):
    torch.manual_seed(0)
    base, parts = nn.Linear(40, 50), []
    for share in (density, 0.3, 0.01):
        mask = torch.rand(50, 40) < share
        index = mask.view(-1).nonzero().view(-1)
        parts.append(SparseValues.from_index((50, 40), index, torch.rand(len(index))))
    made = compose([SparseAdapter({"weight": part}, {"weight": "d"}) for part in parts], "last")["weight"]
    expected = base.weight.detach().clone().view(-1)
    for part in parts:
        expected[part.index] = part.values
    found = base.weight.detach().clone().view(-1)
    found[made.index] = made.values
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_damaged_files_take_little_memory(density, run_fresh, tmp_path):
    """Loaded or refused, the peak grows by less than twice the file's size."""
    code = f"""if True:
        import random, resource, torch
        from pathlib import Path
        from torch import nn
        from wagle_trainer.adapters import SparseAdapter
        from wagle_trainer.adapters.adapter import WEIGHTS_NAME
        from wagle_trainer.adapters.sparse import SparseValues
        torch.manual_seed(0)
        numel, draw = {int(24e6 / density / 4) if density > 0.1 else int(24e6 / density / 8)}, random.Random(0)
        index = (torch.rand(numel) < {density}).nonzero().view(-1)
        sparse = SparseValues.from_index((numel,), index, torch.rand(len(index)))
        SparseAdapter({{"w": sparse}}, {{"w": "d"}}).save_pretrained({str(tmp_path)!r})
        del sparse, index
        file = Path({str(tmp_path)!r}, WEIGHTS_NAME)
        size = file.stat().st_size
        print(size / 2**20, "MiB")
    """
    [(status, output)] = run_fresh([code], "wagle_trainer.adapters")
    assert status == 0, output
    measure = f"""if True:
        import random, resource
        from pathlib import Path
        from wagle_trainer.adapters import SparseAdapter
        from wagle_trainer.adapters.adapter import WEIGHTS_NAME
        file, draw, refused = Path({str(tmp_path)!r}, WEIGHTS_NAME), random.Random(0), 0
        size = file.stat().st_size
        SparseAdapter  # imported before the first measurement
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for _ in range(5):
            with open(file, "r+b") as content:
                content.seek(draw.randrange(size))
                byte = content.read(1)
                content.seek(-1, 1)
                content.write(bytes([byte[0] ^ 1]))
            try:
                SparseAdapter.from_pretrained({str(tmp_path)!r})
            except ValueError:
                refused += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print((peak - before) / size, refused)
    """
    [(status, output)] = run_fresh([measure], "wagle_trainer.adapters")
    assert status == 0, output
    times, refused = output.split()
    assert int(refused) == 5
    assert float(times) < 2
