"""The outputs of the reference model."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import nn

from wagle_trainer.data.fingerprint import fingerprint
from wagle_trainer.losses import LossInputs, get_retain_loss
from wagle_trainer.models.log_probs import token_log_probs
from wagle_trainer.models.reference_log_probs import ReferenceLogits, reference_log_probs

CPU = torch.device("cpu")


@pytest.fixture(params=["llama", "llama tied", "gpt2"])
def model(request, make_llama, make_gpt2):
    """In training mode; GPT-2 has dropout."""
    if request.param == "gpt2":
        return make_gpt2(seed=1).train()
    return make_llama(seed=1, tie_word_embeddings=request.param == "llama tied").train()


@pytest.fixture
def examples(make_examples):
    return make_examples(7, seed=3, prompt=(1, 7), answer=(1, 6))


def target_logits(model, ids, labels):
    """Logits that predict the target tokens of one example."""
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(input_ids=torch.tensor([ids])).logits[0]
    return logits[[t - 1 for t in range(1, len(ids)) if labels[t] != -100]]


@pytest.fixture
def sums(model, examples, log_probs_by_hand):
    with torch.no_grad():
        return torch.stack([log_probs_by_hand(copy.deepcopy(model).eval(), *example).sum() for example in examples])


# Log-probabilities


@pytest.mark.parametrize("size", [1, 4])
def test_log_probs(model, examples, sums, as_batches, size):
    """As without dropout; the model is left as found, each module in its own mode."""
    next(iter(model.children())).eval()
    modes, random_state = [module.training for module in model.modules()], torch.get_rng_state()
    per_token = reference_log_probs(model, as_batches(examples, size), 7, CPU)
    assert per_token.shape == (7, max(sum(label != -100 for label in labels) for _, labels in examples))
    torch.testing.assert_close(per_token.sum(-1), sums, rtol=1e-4, atol=1e-4)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not per_token.requires_grad


def test_shares_of_processes_add_up(model, examples, sums, as_batches):
    shares = [
        reference_log_probs(model, as_batches(examples, 2, process=rank, num_processes=2), 7, CPU) for rank in range(2)
    ]
    assert not bool(((shares[0] != 0) & (shares[1] != 0)).any())
    assert all(bool((share != 0).any()) for share in shares)
    torch.testing.assert_close((shares[0] + shares[1]).sum(-1), sums, rtol=1e-4, atol=1e-4)


def test_values_that_are_not_finite_name_rows_and_weights(make_llama, examples, as_batches):
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    longest = sorted(range(7), key=lambda row: -len(examples[row][0]))[:3]
    with pytest.raises(FloatingPointError) as caught:
        reference_log_probs(model, as_batches(examples, 3), 7, CPU)
    assert str(longest) in str(caught.value)
    assert "'model.layers.1.mlp.down_proj.weight' are not finite" in str(caught.value)


# Logits


@pytest.mark.parametrize("trained", [True, False], ids=["all trained", "head frozen"])
def test_logits_stay_those_of_the_reference_model(model, examples, sums, as_batches, trained):
    head = model.get_output_embeddings()
    head.requires_grad_(trained)
    order = [4, 0, 6]  # any order, unlike that of the batches
    expected = torch.cat([target_logits(model, *examples[row]) for row in order])
    reference = ReferenceLogits(model, as_batches(examples, 3), CPU)
    assert model.training
    torch.testing.assert_close(reference.log_probs, sums, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in reference.head.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    found = reference.values(order, CPU)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (torch.cat([target_logits(model, *examples[row]) for row in order]) - expected).abs().max() > 0.1


def test_the_head_is_copied_only_if_it_is_trained(make_llama, examples, as_batches):
    model = make_llama()
    copied = ReferenceLogits(model, as_batches(examples, 3), CPU).head
    assert copied is not model.lm_head
    assert model.lm_head.weight.requires_grad
    model.lm_head.requires_grad_(False)
    assert ReferenceLogits(model, as_batches(examples, 3), CPU).head is model.lm_head
    assert not model.lm_head._forward_pre_hooks


def test_only_the_given_rows_are_kept(make_llama, examples, as_batches):
    reference = ReferenceLogits(make_llama(), as_batches(examples, 3, rows=[1, 4]), CPU)
    assert sorted(reference.hidden) == [1, 4]
    assert reference.log_probs.nonzero().flatten().tolist() == [1, 4]
    assert [len(reference.hidden[row]) for row in (1, 4)] == [
        sum(label >= 0 for label in examples[row][1]) for row in (1, 4)
    ]


class SoftCapped(nn.Module):
    """Logits that are not the head's output, as in Gemma 2; no `logits_to_keep`."""

    def __init__(self, cap):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.cap = nn.Embedding(57, 8), nn.Linear(8, 57), cap

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None):
        logits = self.head(self.table(input_ids))
        return SimpleNamespace(logits=logits if self.cap is None else self.cap * (logits / self.cap).tanh())


def test_logits_that_are_changed_after_the_head_are_refused(examples, as_batches):
    with pytest.raises(
        ValueError, match=r"retain_loss='kl' needs logits .* SoftCapped changes them .*Use another retain_loss"
    ):
        ReferenceLogits(SoftCapped(1.0), as_batches(examples, 3), CPU)


@pytest.mark.parametrize("side", ["right", "left"])
def test_models_that_compute_all_logits(examples, as_batches, pad_batches, side):
    """Without `logits_to_keep` the head runs on prompts and padding too."""
    model = SoftCapped(None)
    reference = ReferenceLogits(model, as_batches(examples, 3), CPU)
    for batch, rows in zip(pad_batches(examples, 3, side), torch.arange(7).split(3), strict=True):
        retain = token_log_probs(model, batch, keep_logits=True)
        found = get_retain_loss("kl")().retain_loss(
            LossInputs(retain=retain, retain_reference_logits=reference.values(rows.tolist(), CPU))
        )
        torch.testing.assert_close(found, torch.zeros(len(rows)), rtol=0, atol=1e-6)


def test_check_tells_the_reference_model_from_a_trained_one(make_llama, examples, as_batches):
    batches = as_batches(examples, 3)
    reference = ReferenceLogits(make_llama(seed=1), as_batches(examples, 3, rows=range(5)), CPU)
    same, trained = (reference_log_probs(make_llama(seed=seed), batches, 7, CPU).sum(-1) for seed in (1, 0))
    reference.check(same + 1e-4)  # rows that this run does not meet do not count
    with pytest.raises(ValueError, match="given another model than the run began with"):
        reference.check(trained)


# The data they belong to


def test_fingerprint():
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}]
    changed = [
        [rows[0], {"input_ids": [6, 5], "labels": [4, 5]}],
        [rows[0], {"input_ids": [4, 5], "labels": [-100, 5]}],
        rows[::-1],
        rows[:1],
    ]
    same = ([dict(row, other="column") for row in rows], copy.deepcopy(rows), Dataset.from_list(rows))
    assert {fingerprint(some) for some in same} == {fingerprint(rows)}
    assert len({fingerprint(rows), *map(fingerprint, changed)}) == 5
