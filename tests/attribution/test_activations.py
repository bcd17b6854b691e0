"""Inputs of Conv1D and of fused experts against what the matrix products of single examples were called with; rows of
(out, in) matrices; parameters that a score cannot rank."""

import math
import warnings

import pytest
import torch
from torch.overrides import TorchFunctionMode

from wagle_trainer import attribute
from wagle_trainer.models.architecture import layouts_of

SIZES = {
    "vocab_size": 57,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def build(family: str):
    """A tiny mixture of experts whose weights all differ from one another."""
    import transformers

    torch.manual_seed(0)
    more = {
        "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
        "GptOss": {"num_local_experts": 4, "head_dim": 8, "sliding_window": 8},
        "Mixtral": {"num_local_experts": 4},
        "JetMoe": {"num_local_experts": 4, "kv_channels": 8},
        "Llama4": {"num_local_experts": 4, "head_dim": 8, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
    }[family]
    model_class = getattr(transformers, f"{family}ForCausalLM")
    settings = SIZES | more
    if family == "JetMoe":
        del settings["num_attention_heads"]
    model = model_class(model_class.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            elif not parameter.any():
                parameter.normal_(std=0.05)
    return model.eval()


@pytest.fixture
def sets(make_examples):
    return make_examples(7, seed=1), make_examples(5, seed=2)


@pytest.fixture
def batches(sets, pad_batches):
    return [pad_batches(examples, 3, "left") for examples in sets]


class Products(TorchFunctionMode):
    """Records the left factor of every matrix product with (a part of) one of the weights."""

    def __init__(self, weights):
        self.inputs = {
            (name, e): []
            for name, (weight, _) in weights.items()
            for e in range(len(weight) if weight.dim() == 3 else 1)
        }
        self.matrices = {
            (name, e): part
            for name, (weight, transposed) in weights.items()
            for e, part in enumerate(weight if weight.dim() == 3 else [weight])
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.addmm:
            self.look(args[1], args[2])
        elif function in (torch.nn.functional.linear, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul):
            self.look(args[0], args[1])
        return function(*args, **(kwargs or {}))

    def look(self, left, right):
        with torch._C.DisableTorchFunction():
            for key, matrix in self.matrices.items():
                if matrix.shape == right.shape and torch.equal(matrix, right):
                    self.inputs[key].append(left.detach().flatten(0, -2))


def mean_squares(model, names, examples):
    """(name, expert) -> root mean square of the inputs, example by example without padding."""
    weights = {name: (model.get_parameter(name).detach(), False) for name in names}
    products = Products(weights)
    with products, torch.no_grad():
        for ids, _ in examples:
            model(input_ids=torch.tensor([ids]))
    return {key: torch.cat(rows).square().mean(0).sqrt() if rows else None for key, rows in products.inputs.items()}


def seen_activations(model, forget):
    seen = {}

    def look(weight, name, forget_activation):
        seen[name] = forget_activation
        return weight.abs()

    attribute(model, forget, None, score=look, progress=False)
    return seen


@pytest.mark.parametrize(("family", "transposed"), [("Mixtral", False), ("Qwen3Moe", False), ("GptOss", True)])
def test_each_expert_sees_its_tokens(family, transposed, sets, batches):
    model = build(family)
    names = [name for name, p in model.named_parameters() if p.dim() == 3]
    assert len(names) == 4
    model.set_experts_implementation("eager")  # one product for each expert
    expected = mean_squares(model, names, sets[0])
    for implementation in ("eager", "grouped_mm"):
        model.set_experts_implementation(implementation)
        seen = seen_activations(model, batches[0])
        for name in names:
            weight = model.get_parameter(name)
            rms = seen[name]
            assert rms.shape == ((4, weight.shape[1], 1) if transposed else (4, 1, weight.shape[2]))
            for expert in range(4):
                by_hand = expected[name, expert]
                if by_hand is None:
                    assert not rms[expert].any()
                else:
                    torch.testing.assert_close(rms[expert].flatten(), by_hand, rtol=1e-4, atol=1e-5)
    assert sum(value is not None for value in expected.values()) > 8


def test_conv1d(make_gpt2, sets, batches):
    model = make_gpt2().eval()
    names = [
        name
        for name, p in model.named_parameters()
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))
    ]
    assert len(names) == 8
    expected = mean_squares(model, names, sets[0])
    seen = seen_activations(model, batches[0])
    for name in names:
        assert seen[name].shape == (model.get_parameter(name).shape[0], 1)
        torch.testing.assert_close(seen[name].flatten(), expected[name, 0], rtol=1e-4, atol=1e-5)
    assert seen["transformer.wpe.weight"] is None


@pytest.mark.parametrize("score", ["magnitude", "wanda", "frp"])
def test_rows_are_those_of_out_in_matrices(score, make_gpt2, batches):
    """Conv1D and experts: every neuron keeps the same number of its inputs, the highest ones."""
    for model in (make_gpt2(), build("GptOss"), build("Qwen3Moe")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mask = attribute(model, *batches, score=score, scope="row", density=0.25, progress=False)
        layouts = layouts_of(model, dict(model.named_parameters()))
        upside = [name for name, layout in layouts.items() if layout.transposed or layout.experts]
        assert len(upside) >= 4
        for name in upside:
            weight, selected = model.get_parameter(name).detach(), mask[name]
            if layouts[name].transposed:
                weight, selected = weight.transpose(-1, -2), selected.transpose(-1, -2)
            count = math.floor(0.25 * weight.shape[-1])
            assert (selected.sum(-1) == count).all(), name
            if score == "magnitude":
                lowest = weight.abs().masked_fill(~selected, math.inf).amin(-1)
                assert (lowest >= weight.abs().masked_fill(selected, 0).amax(-1)).all(), name


def test_sure_by_row_takes_the_neurons_of_a_conv1d(make_gpt2, batches):
    model = make_gpt2()
    mask = attribute(
        model,
        *batches,
        score="sure",
        score_kwargs={"unit": "row"},
        include=["c_fc.weight"],
        density=0.25,
        progress=False,
    )
    for name in mask:
        columns = mask[name].float().mean(0)
        assert ((columns == 0) | (columns == 1)).sum() >= len(columns) - 1  # whole neurons, but for the threshold


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
@pytest.mark.parametrize("score", ["wanda", "frp"])
def test_parameters_without_inputs_are_frozen_and_do_not_count(score, scope, make_llama, batches):
    model = make_llama(tie_word_embeddings=False)
    linear = [name for name, _ in model.named_parameters() if "proj" in name or "lm_head" in name]
    others = sum(p.numel() for name, p in model.named_parameters() if name not in linear)
    with pytest.warns(
        UserWarning, match=r"cannot rank 6 parameters \(model.embed_tokens.weight, .* and 3 more\)"
    ) as caught:
        mask = attribute(model, *batches, score=score, scope=scope, density=0.25, progress=False)
    assert f"{others:,} weights" in str(caught[0].message)
    assert list(mask) == linear
    assert mask.info.unranked_weights == others
    assert mask.num_selected == math.floor(0.25 * mask.num_weights)
    alone = attribute(
        model, *batches, score=score, scope=scope, density=0.25, progress=False, include=["proj", "lm_head"]
    )
    assert alone == mask
    assert alone.info.unranked_weights is None


@pytest.mark.parametrize("family", ["JetMoe", "Llama4"])
def test_experts_that_cannot_be_seen_are_refused(family, batches):
    model = build(family)
    with pytest.raises(ValueError, match="holds the weights of several experts.*attribution_exclude"):
        attribute(model, *batches, score="wanda", progress=False)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert attribute(model, *batches, score="snip", progress=False).num_selected > 0
    mask = attribute(model, *batches, score="magnitude", scope="row", density=0.25, progress=False)
    name = next(name for name in mask if mask[name].dim() == 3)
    counts = mask[name].sum(-1 if family == "JetMoe" else -2)
    assert (counts == counts[0, 0]).all()
    assert counts[0, 0] == math.floor(0.25 * mask[name].shape[-1 if family == "JetMoe" else -2])
