"""Facts about architectures, on models whose answers are known."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from wagle_trainer.models.architecture import (
    decoder_layer,
    decoder_layers,
    keeps_some_logits,
    linear_weights,
    output_head,
    stands_left_padding,
    takes_positions,
    weight_matrices,
)

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def make(model_type, **config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL | config)).eval()


@pytest.fixture(scope="module")
def mixture():
    return make("qwen3_moe", **HEADS, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)


def test_layers_and_head(make_llama, make_gpt2):
    for model, layers in ((make_llama(), "model.layers"), (make_gpt2(), "transformer.h")):
        assert decoder_layers(model) is model.get_submodule(layers)
        assert decoder_layer(model, 1, "x") is model.get_submodule(layers)[1]
        assert output_head(model) is model.lm_head
    with pytest.raises(ValueError, match="x needs layer 2, but GPT2LMHeadModel has layers 0 to 1"):
        decoder_layer(make_gpt2(), 2, "x")
    with pytest.raises(ValueError, match="x needs a decoder layer, but Linear has no list of None layers"):
        decoder_layer(nn.Linear(2, 2), 0, "x")


def test_layers_of_the_text_model_not_of_the_vision_tower():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=SMALL | HEADS | {"model_type": "llama"},
        vision_config=vision | {"image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"},
        image_token_index=39,
    )
    model = LlavaForConditionalGeneration(config)
    assert type(decoder_layer(model, 0, "x")).__name__ == "LlamaDecoderLayer"


def test_forward_parameters(make_llama, make_gpt2):
    assert takes_positions(make_llama()) and keeps_some_logits(make_llama())
    assert not takes_positions(make("rwkv", context_length=32, attention_hidden_size=16))


def test_rows_are_outputs_whatever_the_layout(make_gpt2, mixture):
    gpt2 = make_gpt2()
    matrices = weight_matrices(gpt2)
    name = "transformer.h.0.mlp.c_fc.weight"
    weight = gpt2.get_parameter(name)
    assert matrices[name].transposed and matrices[name].rows(weight).shape == weight.T.shape
    assert "transformer.wte.weight" not in matrices  # tied to the head
    found = weight_matrices(mixture)
    up = "model.layers.0.mlp.experts.gate_up_proj"
    assert found[up].experts and not found[up].transposed
    assert tuple(found[up].rows(mixture.get_parameter(up)).shape) == (4, 16, 16)  # experts, outputs, inputs
    assert not found["model.layers.0.self_attn.q_proj.weight"].experts


def test_transposed_experts():
    for model_type, config in (
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "intermediate_size": 10}),
        (
            "llama4_text",
            {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8, "interleave_moe_layer_step": 1},
        ),
    ):
        model = make(model_type, **HEADS | config)
        found = {name: matrix for name, matrix in weight_matrices(model).items() if matrix.experts}
        assert found and all(matrix.transposed for matrix in found.values()), model_type
        for name, matrix in found.items():
            outputs = SMALL["hidden_size"] if "down" in name else 2 * model.config.intermediate_size
            assert matrix.rows(model.get_parameter(name)).shape[1] == outputs, name


def test_lora_stands_beside_linear_modules_only(mixture):
    names = linear_weights(mixture)
    assert names["model.layers.0.self_attn.q_proj"] == "model.layers.0.self_attn.q_proj.weight"
    assert not any("experts" in module or module == "lm_head" for module in names)


def test_left_padding(make_llama, make_gpt2):
    assert stands_left_padding(make_llama())
    assert stands_left_padding(make_gpt2())
    torch.manual_seed(0)
    rwkv = make("rwkv", context_length=32, attention_hidden_size=16)
    with torch.no_grad():
        for parameter in rwkv.parameters():
            parameter.normal_(std=0.3)
    assert not stands_left_padding(rwkv)
