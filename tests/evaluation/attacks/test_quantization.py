import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from wagle_trainer.evaluation.attacks import run_attacks
from wagle_trainer.evaluation.attacks.quantization import _quantize, round_to_nearest


def by_loop(weight, bits, group_size):
    """One group after the other, in plain Python."""
    top = 2 ** (bits - 1) - 1
    rows = []
    for row in weight.float().tolist():
        size = group_size or len(row)
        out = []
        for start in range(0, len(row), size):
            group = row[start : start + size]
            scale = max(map(abs, group)) / top
            out += [round(value / scale) * scale if scale else value for value in group]
        rows.append(out)
    return rows


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 13)),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 1, 3, 4, 100]),
    seed=st.integers(0, 1000),
)
@example(shape=(2, 9), bits=8, group_size=4, seed=978)  # two values off by rounding
def test_equals_a_plain_loop(shape, bits, group_size, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight[torch.rand(shape, generator=generator) < 0.2] = 0
    scale = weight.abs().max().item() / (2 ** (bits - 1) - 1)
    expected = torch.tensor(by_loop(weight, bits, group_size))
    result = round_to_nearest(weight, bits, group_size)
    # The loop computes in double. Float32 is off by some 1e-5 of a step at the 127th, and a value half-way between two steps
    # may go either way: it is as near then.
    error = 1e-4 * max(scale, 1e-9)
    equal = (result - expected).abs() <= error
    as_near = ((result - weight).abs() - (expected - weight).abs()).abs() <= error
    assert torch.all(equal | as_near)
    assert torch.all((result - weight).abs() <= scale / 2 * (1 + 1e-4))


@pytest.mark.parametrize("bits", [8, 4])
def test_values_are_few_and_stay_where_they_are(bits):
    weight = torch.randn(3, 200)
    once = round_to_nearest(weight, bits)
    assert all(len(row.unique()) <= 2**bits - 1 for row in once)
    torch.testing.assert_close(round_to_nearest(once, bits), once, rtol=1e-6, atol=1e-7)
    assert torch.equal(round_to_nearest(torch.zeros(2, 5), bits, 2), torch.zeros(2, 5))
    assert round_to_nearest(weight.bfloat16(), bits).dtype == torch.bfloat16


def test_every_linear_layer_but_the_head_is_rounded_along_its_inputs(make_gpt2, make_llama, word_tokenizer):
    rows = [{"question": "w1 w2", "answer": "w3"}]
    for make in (make_gpt2, make_llama):
        before, after = make(0), make(1)
        original = {name: weight.detach().clone() for name, weight in after.named_parameters()}
        seen = []

        def measure(model, tokenizer, rows, after=after, seen=seen):
            if model is not after:
                return 1.0
            seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
            return 0.5

        run_attacks(
            before,
            after,
            word_tokenizer,
            rows,
            ["quantization"],
            options={"quantization": {"bits": [4], "group_size": 8}},
            measure=measure,
            progress=False,
        )
        unquantized, quantized = seen
        for name, weight in original.items():
            assert torch.equal(unquantized[name], weight)
            assert torch.equal(after.get_parameter(name), weight), "not put back"
            module = after.get_submodule(name.rpartition(".")[0])
            if "lm_head" in name or isinstance(module, nn.Embedding) or weight.ndim < 2:
                assert torch.equal(quantized[name], weight), name
            else:  # GPT-2's layers hold (inputs, outputs)
                by_row = (lambda tensor: tensor) if isinstance(module, nn.Linear) else (lambda tensor: tensor.T)
                expected = torch.tensor(by_loop(by_row(weight), 4, 8))
                close = (by_row(quantized[name]) - expected).abs() <= 1e-5
                assert (~close).sum() <= 2, name
                assert not torch.equal(quantized[name], weight)


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_experts_are_rounded_along_their_inputs(transposed):
    """Transformers holds the experts of a mixture as one 3-D parameter; some store (experts, inputs, outputs)."""
    torch.manual_seed(0)
    if transposed:
        config = GptOssConfig(
            vocab_size=57, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=16, num_local_experts=3, num_experts_per_tok=2,
        )  # fmt: skip
        model = GptOssForCausalLM(config)
    else:
        config = Qwen3MoeConfig(
            vocab_size=57, hidden_size=32, intermediate_size=24, moe_intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=3, num_experts_per_tok=2,
        )  # fmt: skip
        model = Qwen3MoeForCausalLM(config)
    experts = {n: w.detach().clone() for n, w in model.named_parameters() if "experts" in n and w.dim() == 3}
    assert len(experts) == 2
    _quantize(model, 4, 8)
    for name, weight in experts.items():
        for one, rounded in zip(weight, model.get_parameter(name), strict=True):
            one, rounded = (one.T, rounded.T) if transposed else (one, rounded)
            expected = torch.tensor(by_loop(one, 4, 8))
            assert ((rounded - expected).abs() > 1e-5).sum() <= 2, name


def test_on_the_forgotten_person(before, after, tokenizer, rows):
    weights = [weight.detach().clone() for weight in after.parameters()]
    result = run_attacks(before, after, tokenizer, rows, ["quantization"], progress=False)["quantization"]
    assert [point["x"] for point in result["points"]] == [8, 4]
    assert result["points"][0]["forget"] != result["baseline"]
    # 8 bits hardly change a model
    assert math.isclose(result["points"][0]["forget"], result["baseline"], abs_tol=0.05)
    for weight, old in zip(after.parameters(), weights, strict=True):
        assert torch.equal(weight.view(torch.int32), old.view(torch.int32))


@pytest.mark.parametrize("options", [{"bits": [9]}, {"bits": []}, {"bits": [1]}, {"group_size": 0}])
def test_options_out_of_range(before, after, tokenizer, rows, options):
    with pytest.raises(ValueError, match="must be"):
        run_attacks(
            before,
            after,
            tokenizer,
            rows,
            ["quantization"],
            options={"quantization": options},
            measure=lambda model, *_: 1.0 if model is before else 0.0,
            progress=False,
        )
