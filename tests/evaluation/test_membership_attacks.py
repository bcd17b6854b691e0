"""What the membership module refuses, and leaves as it was; its numbers are tested in test_tofu.py."""

import pytest
import torch

from wagle_trainer.engines.fsdp2 import FSDP2
from wagle_trainer.evaluation import AnswerScore, gradient_norms, membership_scores

EXAMPLES = [
    {"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]},
    {"input_ids": [5, 9, 1], "labels": [-100, 9, 1]},
]
NAMES = ["first", "second"]


def norms(model, examples=EXAMPLES):
    return gradient_norms(model, examples, NAMES, eos_token_id=1, progress=False)


def test_gradients_are_left_alone(llama):
    """Those that a training step has gathered must not be lost, nor those of an example be added."""
    llama.train()
    llama.lm_head.weight.grad = torch.ones_like(llama.lm_head.weight)
    found = norms(llama)
    assert torch.equal(llama.lm_head.weight.grad, torch.ones_like(llama.lm_head.weight))
    assert all(weight.grad is None for name, weight in llama.named_parameters() if name != "lm_head.weight")
    assert llama.training
    assert found == norms(llama)
    assert found[0] != found[1]


def test_only_trainable_weights_count(llama):
    for name, weight in llama.named_parameters():
        weight.requires_grad_(name == "model.norm.weight")
    model = llama(torch.tensor([[5, 9]])).logits[0, 0].log_softmax(-1)[9]
    expected = torch.autograd.grad(-model, llama.model.norm.weight)[0].norm().item()
    assert norms(llama)[1] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="no parameter of the model requires_grad"):
        norms(llama.requires_grad_(False))


def test_an_answer_without_tokens_and_a_broken_weight_are_named(llama):
    empty = [EXAMPLES[0], {"input_ids": [5, 1], "labels": [-100, 1]}]
    with pytest.raises(ValueError, match="second: the answer has no tokens"):
        norms(llama, empty)
    with torch.no_grad():
        llama.lm_head.weight[9] = float("nan")
    with pytest.raises(FloatingPointError, match="first: the norm of the gradient is nan"):
        norms(llama)


def test_sharded_weights_are_refused(llama, monkeypatch):
    monkeypatch.setattr("wagle_trainer.evaluation.membership_attacks.current_engine", FSDP2)
    with pytest.raises(ValueError, match="which no process holds on FSDP or ZeRO-3"):
        norms(llama)


def test_scores_without_details_are_refused():
    with pytest.raises(ValueError, match="tokens=True and vocabulary=True"):
        membership_scores([AnswerScore(-1.0, 2, 0.5)], ["text"])
