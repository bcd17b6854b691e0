"""The load-balancing loss of mixtures of experts, and dropout: both are as found afterwards."""

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from wagle_trainer.models.modes import without_dropout
from wagle_trainer.models.routers import router_losses


@pytest.fixture
def mixture():
    torch.manual_seed(0)
    sizes = {"vocab_size": 57, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, num_experts=4, num_experts_per_tok=2))


def test_router_losses_are_the_models_own(mixture):
    ids = torch.randint(5, 57, (2, 6))
    with router_losses(mixture) as losses:
        mixture(input_ids=ids)
        mixture(input_ids=ids[:1])
    assert [loss.requires_grad for loss in losses] == [True, True]
    expected = mixture(input_ids=ids, output_router_logits=True).aux_loss
    torch.testing.assert_close(losses[0], expected)
    assert not mixture.config.output_router_logits
    mixture(input_ids=ids)
    assert len(losses) == 2


def test_the_request_is_taken_back_after_an_error(mixture):
    with pytest.raises(KeyboardInterrupt), router_losses(mixture):
        raise KeyboardInterrupt
    assert not mixture.config.output_router_logits
    assert not mixture._forward_hooks


def test_models_without_experts_are_refused(make_llama):
    with pytest.raises(ValueError, match="LlamaForCausalLM is no mixture of experts"), router_losses(make_llama()):
        pass


@pytest.mark.parametrize("make", ["make_gpt2", "make_llama"])  # modules, and an attribute of the attention
def test_without_dropout(make, request):
    settings = {"attention_dropout": 0.5} if make == "make_llama" else {}
    model, ids = request.getfixturevalue(make)(**settings).train(), torch.randint(5, 57, (2, 6))
    with torch.no_grad():
        expected = model.eval()(ids).logits
        model.train()
        with without_dropout(model):
            assert model.training
            torch.testing.assert_close(model(ids).logits, expected)
        assert (model(ids).logits - expected).abs().max() > 1e-3
