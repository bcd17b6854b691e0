"""The PEFT method "WAGLE": whatever is switched on and off, the bits are those of the tuned or of the base model."""

import copy
import itertools
import json
import pickle
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
)
from torch import nn
from transformers import AutoModelForCausalLM

from wagle_trainer.adapters import (
    AdapterMismatchError,
    AdapterOverlapError,
    SparseAdapter,
    WagleAdapterConfig,
    compose,
    diff,
    layer,
    merge,
)
from wagle_trainer.adapters.adapter import CONFIG_NAME, WEIGHTS_NAME

IDS = torch.tensor([[5, 9, 3, 1, 18], [2, 2, 7, 0, 11]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["llama", "llama-tied", "gpt2"])
def model(request, make_llama, make_gpt2):
    """A causal language model; GPT-2's head is tied, and its layers are `Conv1D` with biases."""
    if request.param == "gpt2":
        return make_gpt2().eval()
    return make_llama(tie_word_embeddings=request.param == "llama-tied").eval()


@pytest.fixture
def requests(model, change, tmp_path):
    """Three changed copies of the model; the adapter of each is in the folder with its name."""
    made = {}
    for number, name in enumerate(("one", "two", "three")):
        made[name], _ = change(model, (0.01, 0.2, 0.05)[number], number)
        diff(model, made[name]).save_pretrained(tmp_path / name)
    return made


def logits(model, **inputs):
    with torch.no_grad():
        output = model(**(inputs or {"input_ids": IDS}))
    return output.logits


def storages(model):
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_model(data, make_net, change, same_bits, tmp_path_factory):
    dtype = data.draw(st.sampled_from(DTYPES))
    base = make_net(data.draw(st.integers(0, 99)), tied=data.draw(st.booleans()), dtype=dtype)
    pristine, memory = copy.deepcopy(base), storages(base)
    densities = data.draw(st.lists(st.sampled_from([0.02, 0.1, 0.5, 1.0]), min_size=1, max_size=3))
    folder = tmp_path_factory.mktemp("adapters")
    tuned = {}
    for number, density in enumerate(densities):
        tuned[f"request{number}"], masks = change(base, density, number)
        if not any(bool(mask.any()) for mask in masks.values()):
            return
        diff(base, tuned[f"request{number}"]).save_pretrained(folder / f"request{number}")
    model = PeftModel.from_pretrained(base, folder / "request0", "request0")
    for name in list(tuned)[1:]:
        model.load_adapter(folder / name, name)
    wrapped = model.base_model.model
    for number in range(1, len(tuned) + 1):
        for names in itertools.permutations(tuned, number):
            combine = data.draw(st.sampled_from(["last", "sum"]))
            model.base_model.set_adapter(list(names), combine=combine)
            expected = merge(copy.deepcopy(pristine), compose([folder / name for name in names], combine, pristine))
            if number == 1:
                assert same_bits(expected, tuned[names[0]])
            output = expected(IDS)
            assert torch.equal(model(IDS), output)
            with model.disable_adapter():
                assert torch.equal(model(IDS), pristine(IDS))
            model.merge_adapter()
            assert torch.equal(model(IDS), output)
            for (_, merged), (_, wanted) in zip(wrapped.named_parameters(), expected.named_parameters(), strict=True):
                assert torch.equal(merged, wanted)
            with model.disable_adapter():
                assert torch.equal(model(IDS), pristine(IDS))
            for (_, merged), (_, wanted) in zip(wrapped.named_parameters(), expected.named_parameters(), strict=True):
                assert torch.equal(merged, wanted)  # merged again
            assert torch.equal(model(IDS), output)
            model.unmerge_adapter()
            assert torch.equal(model(IDS), output)
            assert storages(model) == memory
    gone = data.draw(st.sampled_from(sorted(tuned)))
    others = [name for name in tuned if name != gone]
    model.base_model.set_adapter(list(tuned), combine="sum")
    model.delete_adapter(gone)
    expected = (
        merge(copy.deepcopy(pristine), compose([folder / n for n in others], "sum", pristine)) if others else base
    )
    assert model.active_adapters == others
    assert torch.equal(model(IDS), (expected if others else pristine)(IDS))
    assert model.unload() is base and same_bits(base, pristine)
    final = PeftModel.from_pretrained(base, folder / "request0").merge_and_unload()
    assert final is base and same_bits(final, tuned["request0"])


def test_generation_in_both_states(model, requests, tmp_path):
    expected = {}
    for name, each in {"base": copy.deepcopy(model), **requests}.items():
        expected[name] = each.generate(input_ids=IDS, max_new_tokens=6, do_sample=False)
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.load_adapter(tmp_path / "two", "two")
    for name, adapter in (("one", "default"), ("two", "two")):
        adapted.set_adapter(adapter)
        for change_state in (adapted.merge_adapter, adapted.unmerge_adapter):
            change_state()
            assert torch.equal(adapted.generate(input_ids=IDS, max_new_tokens=6, do_sample=False), expected[name])
            assert torch.equal(logits(adapted), logits(requests[name]))
    with adapted.disable_adapter():
        assert torch.equal(adapted.generate(input_ids=IDS, max_new_tokens=6, do_sample=False), expected["base"])


def test_gradients_of_the_inputs(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "two")
    gradients = []
    for each in (adapted, requests["two"]):
        inputs = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        each(inputs_embeds=inputs).logits.square().sum().backward()
        gradients.append(inputs.grad)
    assert torch.equal(*gradients)
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


@pytest.mark.parametrize("grad", [False, True])
def test_one_touched_module_at_a_time(grad, model, requests, tmp_path, monkeypatch):
    """Nothing that was put together for one module is left when the next one runs, not for a backward pass either."""
    adapted = PeftModel.from_pretrained(model, tmp_path / "two")
    alive, most, put_together = [], 0, layer._with_values

    def watch(base, parts):
        nonlocal most
        tensor = put_together(base, parts)
        alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(tensor)]
        most = max(most, sum(reference().ndim > 1 for reference in alive))
        return tensor

    monkeypatch.setattr(layer, "_with_values", watch)
    inputs = torch.randn(2, 5, 32, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        output = adapted(inputs_embeds=inputs).logits
    assert most == 1 and not any(reference() is not None for reference in alive)
    if grad:
        output.sum().backward()
        assert most == 1


def test_weights_changed_before_the_backward_pass(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "two")
    output = adapted(inputs_embeds=torch.randn(2, 5, 32, requires_grad=True)).logits
    adapted.merge_adapter()
    with pytest.raises(RuntimeError, match="changed, as by merging an adapter, between a forward and its backward"):
        output.sum().backward()


def test_parameters_read_past_the_layer(model, requests, tmp_path):
    """As TRL's fused head reads `lm_head.weight`."""
    base = model.lm_head.weight.detach().clone()
    adapted = PeftModel.from_pretrained(model, tmp_path / "two")
    head = adapted.base_model.model.lm_head
    assert torch.equal(head.weight, requests["two"].lm_head.weight)
    assert head.bias is None and head.in_features == 32  # whatever else the module has
    with adapted.disable_adapter():
        assert torch.equal(head.weight, base)


def test_saved_by_peft_it_is_the_same_adapter(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.load_adapter(tmp_path / "two", "two")
    for state in ("apart", "merged"):
        if state == "merged":
            adapted.base_model.set_adapter(["default", "two"], combine="sum")
            adapted.merge_adapter()
        adapted.save_pretrained(tmp_path / state)
        for name, folder in (("one", tmp_path / state), ("two", tmp_path / state / "two")):
            assert SparseAdapter.from_pretrained(folder) == SparseAdapter.from_pretrained(tmp_path / name)
            saved, ours = (json.loads((f / CONFIG_NAME).read_text()) for f in (folder, tmp_path / name))
            assert saved["tensors"] == ours["tensors"]
            assert not {"combine", "ignore_base_mismatch"} & saved.keys()
    assert torch.equal(copy.deepcopy(adapted)(IDS).logits, adapted(IDS).logits)


def test_what_was_cast_is_not_saved(model, requests, tmp_path):
    """The file would not be the adapter that its configuration names."""
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.merge_adapter()
    adapted.bfloat16()
    expected = logits(adapted)
    with pytest.raises(ValueError, match="values of .* are torch.bfloat16 by now, but the adapter is of float32"):
        adapted.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(adapted), expected)  # merged, as before


@pytest.mark.slow
def test_compiled(model, requests, tmp_path):
    """Dynamo leaves the layers' own code to Python; what comes out is the same, in every state."""
    expected = [logits(requests["two"]), logits(model), logits(requests["two"])]
    adapted = PeftModel.from_pretrained(model, tmp_path / "two")
    compiled = torch.compile(adapted, backend="eager")
    torch.testing.assert_close(logits(compiled), expected[0])
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(compiled), expected[1])
    adapted.merge_adapter()
    torch.testing.assert_close(logits(compiled), expected[2])


def test_threads(model, requests, tmp_path):
    """As in a server: each gets the adapter's outputs, and the base model stays what it is."""
    base = copy.deepcopy(model)
    adapted, memory = PeftModel.from_pretrained(model, tmp_path / "two"), storages(model)
    expected = logits(adapted)
    head = adapted.base_model.model.lm_head.base_layer
    handle = head.register_forward_pre_hook(lambda *_: time.sleep(0.02))  # so that threads meet there
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: logits(adapted), range(8)))
    handle.remove()
    assert all(torch.equal(output, expected) for output in outputs)
    assert storages(model) == memory
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), logits(base))


def test_model_status(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    status = adapted.get_model_status()
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.peft_types == {"default": "WAGLE"} and status.trainable_params == 0


# Several adapters


def test_overlap_without_a_rule(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.load_adapter(tmp_path / "two", "two")
    before = logits(adapted)
    with pytest.raises(AdapterOverlapError, match="set by more than one adapter"):
        adapted.base_model.set_adapter(["default", "two"])
    assert adapted.active_adapters == ["default"] and torch.equal(logits(adapted), before)
    with pytest.raises(ValueError, match="Unknown combine='mean'"):
        adapted.base_model.set_adapter(["default", "two"], combine="mean")
    with pytest.raises(ValueError, match="no adapter 'four'. Loaded: default, two"):
        adapted.base_model.set_adapter(["default", "four"])
    with pytest.raises(ValueError, match="no adapter 'four'"):
        adapted.base_model.delete_adapter("four")
    with pytest.raises(ValueError, match="no adapter 'four', or its values were never loaded"):
        get_peft_model_state_dict(adapted, adapter_name="four")


def test_rule_given_when_loading(model, requests, tmp_path):
    base = copy.deepcopy(model)
    adapted = PeftModel.from_pretrained(model, tmp_path / "one", combine="sum")
    adapted.load_adapter(tmp_path / "two", "two")
    adapted.base_model.set_adapter(["default", "two"])
    expected = merge(base, compose([tmp_path / "one", tmp_path / "two"], "sum", base))
    assert torch.equal(logits(adapted), logits(expected))


def test_back_to_refusing_overlaps(model, requests, tmp_path):
    """Nothing of a sum is left when its adapters are no longer active together."""
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.load_adapter(tmp_path / "two", "two")
    adapted.base_model.set_adapter(["default", "two"], combine="sum")
    for names in (["two"], ["default", "default"]):
        adapted.base_model.set_adapter(names, combine="error")
        expected = requests["two" if "two" in names else "one"]
        assert torch.equal(logits(adapted), logits(expected))
        adapted.merge_adapter()
        assert torch.equal(logits(adapted), logits(expected))
        adapted.unmerge_adapter()
    adapted.base_model.set_adapter([])
    adapted.base_model.set_adapter(["default", "two"], combine="last")


def test_removing_requests_one_after_the_other(model, requests, tmp_path):
    """Also the first one, which `PeftModel` goes on taking for the active one."""
    base = copy.deepcopy(model)
    adapted = PeftModel.from_pretrained(model, tmp_path / "one", "one")
    for name in ("two", "three"):
        adapted.load_adapter(tmp_path / name, name)
    adapted.base_model.set_adapter(["one", "two", "three"], combine="last")
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="'one' is merged: call unmerge_adapter"):
        adapted.delete_adapter("one")
    adapted.unmerge_adapter()
    left = ["one", "two", "three"]
    for name in ("one", "three", "two"):
        adapted.delete_adapter(name)
        left.remove(name)
        expected = copy.deepcopy(base)
        if left:
            merge(expected, compose([tmp_path / each for each in left], "last"))
        assert torch.equal(logits(adapted), logits(expected))
        assert torch.equal(
            adapted.generate(input_ids=IDS, max_new_tokens=3), expected.generate(input_ids=IDS, max_new_tokens=3)
        )
    adapted.load_adapter(tmp_path / "two", "again")
    adapted.set_adapter("again")
    assert torch.equal(logits(adapted), logits(requests["two"]))


def test_loading_and_switching_while_merged(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.merge_adapter()
    with pytest.warns(UserWarning, match="unmerging it to load another one"):
        adapted.load_adapter(tmp_path / "two", "two")
    adapted.merge_adapter()
    with pytest.warns(UserWarning, match="unmerging them first"):
        adapted.set_adapter("two")
    assert torch.equal(logits(adapted), logits(requests["two"]))
    adapted.merge_adapter(adapter_names=["default"])
    assert torch.equal(logits(adapted), logits(requests["one"]))


# What is refused


def test_merging_twice(model, requests, tmp_path, same_bits):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="The adapters default are merged already. Call unmerge_adapter"):
        adapted.merge_adapter()
    with pytest.raises(ValueError, match="merged already: call unmerge_adapter"):
        adapted.merge_and_unload(adapter_names=["default"])
    assert same_bits(adapted.merge_and_unload(), requests["one"])
    with pytest.raises(AdapterMismatchError, match="made for another base model"):
        PeftModel.from_pretrained(model, tmp_path / "one")


def test_another_base(model, requests, tmp_path, same_bits):
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    before = copy.deepcopy(other)
    with pytest.raises(AdapterMismatchError, match="another base model.*ignore_base_mismatch=True"):
        PeftModel.from_pretrained(other, tmp_path / "two")
    assert same_bits(other, before)
    adapted = PeftModel.from_pretrained(other, tmp_path / "two", ignore_base_mismatch=True)
    expected = merge(before, tmp_path / "two", ignore_base_mismatch=True)
    assert torch.equal(logits(adapted), logits(expected))
    with pytest.raises(AdapterMismatchError, match="another base model"):
        adapted.load_adapter(tmp_path / "one", "one")
    adapted.add_adapter("one", WagleAdapterConfig.from_pretrained(tmp_path / "one", ignore_base_mismatch=True))
    adapted.load_adapter(tmp_path / "one", "one")
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(AdapterMismatchError, match="torch.float32 in the adapter and torch.bfloat16 in the model"):
        PeftModel.from_pretrained(half, tmp_path / "two")


def test_unknown_version_and_altered_file(model, requests, tmp_path):
    content = bytearray((tmp_path / "one" / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (tmp_path / "one" / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(AdapterMismatchError, match="altered or replaced"):
        PeftModel.from_pretrained(model, tmp_path / "one")
    config = json.loads((tmp_path / "two" / CONFIG_NAME).read_text())
    (tmp_path / "two" / CONFIG_NAME).write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(ValueError, match="adapter format version 99"):
        PeftModel.from_pretrained(copy.deepcopy(requests["three"]), tmp_path / "two")


def test_weights_that_were_offloaded(model, requests, tmp_path):
    """Hooks that fetch the weights would put the base model's over the adapter's."""
    adapted = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "two")
    cpu_offload(adapted, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="has been offloaded since the adapter was loaded"):
        logits(adapted)
    offloaded = cpu_offload(model, torch.device("cpu"))
    with pytest.raises(ValueError, match="is not in memory"):
        PeftModel.from_pretrained(offloaded, tmp_path / "two")


@pytest.mark.parametrize("name", ["request.1", "keys", "training"])
def test_names_that_modules_cannot_have(name, model, requests, tmp_path, same_bits):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"'{name}' cannot be the name of an adapter.*another name"):
        PeftModel.from_pretrained(model, tmp_path / "one", name)
    assert same_bits(model, before)


def test_values_that_nobody_loaded(make_llama, change, tmp_path):
    """Transformers' own loader knows names of adapter tensors that this method does not have. It must not go unnoticed."""
    make_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tuned, _ = change(base, 0.05, 0)
    diff(base, tuned).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RuntimeError, match=r"has no values yet. Load it by PeftModel.from_pretrained"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")(IDS)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), logits(tuned.eval()))


def test_adapters_are_not_trained_by_peft(model, requests, tmp_path, same_bits):
    with pytest.raises(ValueError, match="not trained through PEFT: leave is_trainable=True out"):
        PeftModel.from_pretrained(model, tmp_path / "one", is_trainable=True)
    frugal = PeftModel.from_pretrained(model, tmp_path / "one", low_cpu_mem_usage=True)
    assert torch.equal(logits(frugal), logits(requests["one"]))


def test_adapters_that_cannot_be_made(make_net, change, tmp_path):
    with pytest.raises(ValueError, match="not made empty: train with WagleConfig"):
        get_peft_model(make_net(), WagleAdapterConfig())

    class Holder(nn.Module):
        def __init__(self, held):
            super().__init__()
            self.held = held

    for holder, where in ((nn.Linear(4, 4), "the model itself"), (nn.ParameterList([torch.ones(4)]), "a list")):
        model = holder if isinstance(holder, nn.Linear) else Holder(holder)
        diff(model, change(model, 1.0, 0)[0]).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"is held by {where}.*adapters.merge"):
            PeftModel.from_pretrained(model, tmp_path)


def test_values_that_are_not_finite(make_net, tmp_path):
    base = make_net()
    broken = copy.deepcopy(base)
    with torch.no_grad():
        broken.down.weight[0, 0] = float("nan")
    diff(base, broken).save_pretrained(tmp_path)
    adapted = PeftModel.from_pretrained(base, tmp_path)
    with pytest.raises(ValueError, match="'down.weight' would have values that are not finite"):
        adapted.merge_adapter(safe_merge=True)
    with adapted.disable_adapter(), pytest.raises(ValueError, match="disabled: enable them before merging"):
        adapted.merge_adapter()


# How PEFT learns of it


ORDERS = [
    "import peft, wagle_trainer",
    "import wagle_trainer; import peft",
    *(
        f"import {first}, wagle_trainer, peft"
        for first in ("wagle_trainer.adapters", "wagle_trainer.masking", "peft.utils.peft_types", "trl")
    ),
]
UNPICKLE = "import peft, pickle; print(*map(repr, pickle.loads({content})))"


ALONE = "import peft; peft.PEFT_TYPE_TO_CONFIG_MAPPING['WAGLE']"


@pytest.fixture(scope="module")
def fresh(run_fresh):
    """Code -> (exit code, output), where neither PEFT nor this package was imported before."""
    content = pickle.dumps([PeftType.WAGLE, PeftType.LORA, WagleAdapterConfig()])
    codes = [f"{order}; assert 'WAGLE' in peft.PEFT_TYPE_TO_TUNER_MAPPING" for order in ORDERS]
    libraries = ("transformers.modeling_utils", "torch._dynamo", "datasets")  # none of which imports PEFT
    results = run_fresh([*codes, UNPICKLE.format(content=content), ALONE], *libraries)
    return dict(zip([*ORDERS, UNPICKLE, ALONE], results, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_importing_the_package_is_enough_in_any_order(order, fresh):
    assert fresh[order][0] == 0, fresh[order][1]


def test_the_method_is_one_of_pefts(tmp_path):
    assert PeftType.WAGLE.value == "WAGLE" == PeftType.WAGLE and PeftType("WAGLE") is PeftType["WAGLE"] in list(
        PeftType
    )
    assert PeftType.LORA in list(PeftType) and WagleAdapterConfig().peft_type is PeftType.WAGLE
    entry = {"shape": [1], "dtype": "float32", "num_values": 1, "base_digest": "1"}
    config = WagleAdapterConfig(digest="0", tensors={"a": entry})
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config


def test_a_process_that_knows_peft_alone_can_unpickle_it(fresh):
    """As a worker that is handed a model, whose kind comes before the adapter's own classes."""
    code, output = fresh[UNPICKLE]
    assert code == 0, output
    assert output.splitlines()[-1].startswith(f"{PeftType.WAGLE!r} {PeftType.LORA!r} WagleAdapterConfig(")
    assert pickle.loads(pickle.dumps(PeftType.WAGLE)) is copy.deepcopy(PeftType.WAGLE) is PeftType.WAGLE


# Modules that are used in other ways than by their forward pass


class Mixture(nn.Module):
    """As JetMoE's experts: `map` and `reduce` are called, `forward` never is."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4))
        self.project = nn.Linear(4, 4)

    def map(self, x):
        return self.project(x) + self.bias

    def reduce(self, x):
        return self.map(x) * self.bias


class Caller(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Mixture()

    def forward(self, x):
        return self.experts.reduce(self.experts.map(x)) + self.experts.bias


def test_methods_of_a_module_use_the_adapters_values(change, tmp_path):
    torch.manual_seed(0)
    base, x = Caller(), torch.randn(3, 4)
    pristine, tuned = base(x), change(base, 1.0, 0)[0]
    diff(base, tuned).save_pretrained(tmp_path)
    adapted = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(adapted(x), tuned(x)) and not torch.equal(tuned(x), pristine)
    adapted.merge_adapter()
    assert torch.equal(adapted(x), tuned(x))
    adapted.unmerge_adapter()
    with adapted.disable_adapter():
        assert torch.equal(adapted(x), pristine)
    assert torch.equal(adapted.unload()(x), pristine)


@pytest.mark.parametrize("how", ["flattened", "sliced"])
def test_sharded_parameters_are_refused(how, model, requests, tmp_path):
    """FSDP1 puts a tensor over the parameter, ZeRO-3 leaves an empty one."""
    adapted = PeftModel.from_pretrained(model, tmp_path / "two")
    head = adapted.base_model.model.lm_head.base_layer
    if how == "flattened":
        head.__dict__["weight"] = head.weight.detach()
    else:
        head.weight.data = torch.empty(0)
    with pytest.raises(RuntimeError, match="is sharded or flattened .FSDP1 and ZeRO-3.*Merge the adapter before"):
        logits(adapted)
    with pytest.raises(RuntimeError, match="is sharded or flattened"):
        adapted.merge_adapter()


def test_lora_on_top_is_refused(model, requests, tmp_path, same_bits):
    adapted = PeftModel.from_pretrained(model, tmp_path / "two")
    config = LoraConfig(target_modules=["q_proj", "c_attn"], r=2)
    with pytest.raises(ValueError, match="Another PEFT method .such as LoRA.*Merge the WAGLE adapter first"):
        get_peft_model(adapted, config)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types|different PEFT|WAGLE"):
        adapted.add_adapter("lora", config)


# What a file says, and what the one who loads it decides


@pytest.mark.parametrize("choice", [{"ignore_base_mismatch": True}, {"combine": "last"}])
def test_a_downloaded_file_switches_no_check_off(choice, model, requests, tmp_path):
    file = tmp_path / "one" / CONFIG_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | choice))
    config = PeftConfig.from_pretrained(tmp_path / "one")
    assert not config.ignore_base_mismatch and config.combine == "error"
    with pytest.raises(AdapterMismatchError, match="another base model"):
        PeftModel.from_pretrained(requests["two"], tmp_path / "one")


def test_altered_metadata_is_noticed_and_files_without_a_digest_load(model, requests, tmp_path):
    file = tmp_path / "one" / CONFIG_NAME
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"training": {"objective": "another"}}))
    for load in (SparseAdapter.from_pretrained, PeftConfig.from_pretrained):
        with pytest.raises(AdapterMismatchError, match="does not have the digest that it names: it was altered"):
            load(tmp_path / "one")
    del config["metadata_digest"]
    file.write_text(json.dumps(config))
    assert torch.equal(logits(PeftModel.from_pretrained(model, tmp_path / "one")), logits(requests["one"]))


@pytest.mark.parametrize("file", [WEIGHTS_NAME, CONFIG_NAME])
def test_damaged_files_are_named(file, model, requests, tmp_path):
    path = tmp_path / "one" / file
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[: len(content) // 2] + b"\xff" * 9):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=".") as caught:
            PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "one")
        if file == WEIGHTS_NAME:  # PEFT itself reads the configuration first
            assert str(path) in str(caught.value) and "Fetch it again" in str(caught.value)


@pytest.mark.parametrize(
    "entry", [{"shape": [-1, 3]}, {"shape": "ab"}, {"num_values": 10**12}, {"dtype": "nn"}, {"base_digest": None}]
)
def test_impossible_tensors_are_refused(entry, model, requests, tmp_path):
    file = tmp_path / "one" / CONFIG_NAME
    config = json.loads(file.read_text())
    config.pop("metadata_digest")
    config["tensors"][next(iter(config["tensors"]))] |= entry
    file.write_text(json.dumps(config))
    for load in (SparseAdapter.from_pretrained, PeftConfig.from_pretrained):
        with pytest.raises(ValueError, match="not a readable adapter configuration: 'tensors' has"):
            load(tmp_path / "one")


def test_a_name_in_use(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one", "mine")
    adapted.load_adapter(tmp_path / "one", "mine")  # the same one once more
    with pytest.raises(ValueError, match="another adapter with the name 'mine'.*delete_adapter"):
        adapted.load_adapter(tmp_path / "two", "mine")
    assert torch.equal(logits(adapted), logits(requests["one"]))


def test_deleting_the_active_adapter_warns(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one", "mine")
    with pytest.warns(UserWarning, match="'mine' was the only active adapter: the base model answers from now on"):
        adapted.delete_adapter("mine")


def test_an_adapter_for_each_row_is_refused(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    for call in (adapted, adapted.generate):
        with pytest.raises(ValueError, match="adapter_names is not supported. Run one batch for each adapter"):
            call(input_ids=IDS, adapter_names=["default", "__base__"])


def test_saved_by_peft_on_a_base_with_added_tokens(model, requests, tmp_path):
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    adapted.save_pretrained(tmp_path / "saved", save_embedding_layers=True)
    base = copy.deepcopy(adapted).unload()
    with pytest.warns(UserWarning, match="also holds weights of the base model.*where tokens were added"):
        again = PeftModel.from_pretrained(base, tmp_path / "saved")
    assert torch.equal(logits(again), logits(requests["one"]))
    with pytest.warns(UserWarning, match="also holds weights of the base model"):
        assert SparseAdapter.from_pretrained(tmp_path / "saved") == SparseAdapter.from_pretrained(tmp_path / "one")


def test_what_the_base_does_is_in_the_file():
    from transformers import T5Config, T5ForConditionalGeneration

    from wagle_trainer.adapters import AdapterInfo

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    assert AdapterInfo.of(T5ForConditionalGeneration(config)).task_type == "SEQ_2_SEQ_LM"
    assert AdapterInfo.of(nn.Linear(2, 2)).task_type is None


def test_without_the_package_peft_names_the_method(fresh):
    """What the card and the guide warn of."""
    code, output = fresh[ALONE]
    assert code != 0
    assert "KeyError: 'WAGLE'" in output
