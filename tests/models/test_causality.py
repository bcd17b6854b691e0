"""Causal families pass the check, whatever their mixers; encoder-decoders, BERT-like models and classifiers do not."""

import pytest
import torch
from torch import nn

from wagle_trainer.models.causality import check_causal, influence_of_last_token

TINY = {
    "vocab_size": 57,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
ENCODER_DECODER = {"vocab_size": 57, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 1}
BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}


def build(name: str, **settings):
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    without = {"Mamba": ("intermediate_size",), "Rwkv": ("num_attention_heads",)}
    config = {key: value for key, value in settings.items() if key not in without.get(name.split("For")[0], ())}
    return model_class(model_class.config_class(**config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LlamaForCausalLM", {}),
        ("MistralForCausalLM", {"sliding_window": 3}),
        ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("MambaForCausalLM", {"state_size": 8, "time_step_rank": 4}),
        ("RwkvForCausalLM", {"attention_hidden_size": 32, "context_length": 64}),
        ("BertLMHeadModel", {"is_decoder": True}),
    ],
)
def test_causal_families(name, settings, dtype):
    model = build(name, **TINY, **settings).to(dtype).train()
    check_causal(model)
    assert influence_of_last_token(model) < 1e-5
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "BartForConditionalGeneration",
            ENCODER_DECODER | BART,
            "is an encoder-decoder: its encoder reads the whole text",
        ),
        (
            "T5ForConditionalGeneration",
            ENCODER_DECODER | {"d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2},
            "is an encoder-decoder: its encoder reads the whole text",
        ),
        ("BertForMaskedLM", TINY, "does not predict the next token"),
        ("LlamaForSequenceClassification", TINY, "does not predict the next token.*AutoModelForCausalLM"),
        (
            "BertLMHeadModel",
            TINY | {"initializer_range": 0.2},
            r"is not causal: a changed last token .*is_decoder=True",
        ),
    ],
)
def test_other_models_are_refused(name, settings, message, dtype):
    with pytest.raises(ValueError, match=f"{name} {message}"):
        check_causal(build(name, **settings).to(dtype))


class Averaging(nn.Module):
    """Every prediction sees the mean of all tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

    def forward(self, input_ids, attention_mask=None):
        from types import SimpleNamespace

        hidden = self.table(input_ids)
        return SimpleNamespace(logits=self.head(hidden + hidden.mean(1, keepdim=True)))


def test_models_of_ones_own():
    model = Averaging()
    with pytest.raises(ValueError, match="Averaging is not causal"):
        check_causal(model)
    model.table.weight.data.fill_(float("nan"))
    assert influence_of_last_token(model) is None  # weights that are not finite are reported where they are read
    assert influence_of_last_token(nn.Linear(2, 2)) is None


def test_the_probe_leaves_no_trace(make_gpt2):
    model = make_gpt2().train()
    state = torch.get_rng_state()
    check_causal(model)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attribution_refuses_such_models(make_examples, pad_batches):
    from wagle_trainer import attribute

    batches = pad_batches(make_examples(3), 3)
    model = build("BartForConditionalGeneration", **(ENCODER_DECODER | BART))
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        attribute(model, batches, batches, progress=False)
    assert attribute(model, None, None, score="magnitude", progress=False).num_selected > 0  # it reads no data


def test_log_probabilities_and_evaluation_refuse_such_models(word_tokenizer, make_examples, pad_batches):
    from wagle_trainer.evaluation import generate_greedy, score_answers
    from wagle_trainer.models.log_probs import token_log_probs

    [batch] = pad_batches(make_examples(3), 3)
    row = [{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}]
    bart = build("BartForConditionalGeneration", **(ENCODER_DECODER | BART))
    for call in (
        lambda: token_log_probs(bart, batch),
        lambda: score_answers(bart, row, ["row"], eos_token_id=None),
        lambda: generate_greedy(bart, word_tokenizer, [[7, 8]], max_new_tokens=1),
    ):
        with pytest.raises(ValueError, match="is an encoder-decoder"):
            call()
    bert = build("BertLMHeadModel", **TINY, initializer_range=0.2)
    with pytest.raises(ValueError, match="is not causal"):
        score_answers(bert, row, ["row"], eos_token_id=None)


def test_the_probe_runs_once_for_each_model(make_llama, monkeypatch):
    from wagle_trainer.models import causality

    calls = []
    monkeypatch.setattr(causality, "check_causal", calls.append)
    models = [make_llama(), make_llama()]
    for model in (*models, *models):
        causality.check_causal_once(model)
    assert calls == models
