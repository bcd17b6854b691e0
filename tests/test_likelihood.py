"""Log-probabilities of label tokens against one unpadded forward pass per example and a full log-softmax."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wagle_trainer.likelihood import token_log_probs


@pytest.fixture(params=["llama", "gpt2"])
def model(request, make_llama, make_gpt2):
    return (make_llama() if request.param == "llama" else make_gpt2()).eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_log_probs_of_a_padded_batch(model, make_examples, pad_batches, log_probs_by_hand, side):
    examples = [*make_examples(5, seed=6), ([7, 8, 9], [-100] * 3), ([7, 8, 9], [7, -100, 9])]
    (batch,) = pad_batches(examples, 7, side)
    with torch.no_grad():
        found = token_log_probs(model, batch, top1=True, keep_logits=True)
        expected = [
            log_probs_by_hand(model, *one) if index != 5 else torch.zeros(0) for index, one in enumerate(examples)
        ]
        alone = [model(input_ids=torch.tensor([ids])).logits[0] for ids, _ in examples]
    assert found.log_probs.dtype == torch.float32
    assert found.log_probs.shape == found.mask.shape == (7, batch["labels"].shape[1] - 1)
    assert (found.log_probs[~found.mask] == 0).all()
    assert found.num_tokens().tolist() == [len(values) for values in expected]
    for row, values in enumerate(expected):
        torch.testing.assert_close(found.log_probs[row][found.mask[row]], values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(), torch.stack([v.sum() for v in expected]), rtol=1e-4, atol=1e-5)
    means = torch.stack([v.mean() if len(v) else torch.tensor(0.0) for v in expected])
    torch.testing.assert_close(found.mean(), means, rtol=1e-4, atol=1e-5)
    for row, ((ids, labels), logits) in enumerate(zip(examples, alone, strict=True)):
        positions = [t - 1 for t in range(1, len(ids)) if labels[t] != -100]
        top = [bool(logits[t].argmax() == ids[t + 1]) for t in positions]
        assert found.is_top1[row][found.mask[row]].tolist() == top
        kept = found.logits[row][found.mask[row][found.kept]]
        torch.testing.assert_close(kept, logits[positions], rtol=1e-4, atol=1e-4)
    assert not found.is_top1[~found.mask].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_token_has_nothing_to_predict_it_from(model, make_examples, pad_batches, side):
    examples = [(ids, list(ids)) for ids, _ in make_examples(5, seed=6)]
    (batch,) = pad_batches(examples, 5, side)
    found = token_log_probs(model, batch)
    assert found.num_tokens().tolist() == [len(ids) - 1 for ids, _ in examples]


def test_a_batch_without_labels_is_a_differentiable_zero(model):
    ids = torch.tensor([[5, 6, 7]])
    found = token_log_probs(model, {"input_ids": ids, "labels": torch.full_like(ids, -100)})
    assert found.sum().item() == 0
    found.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_models_that_compute_all_logits(pad_batches):
    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 9)

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=self.table(input_ids))

    model = Bigram()
    (batch,) = pad_batches([([1, 2, 3], [-100, -100, 3]), ([4, 5], [-100, 5])], 2)
    table = model.table.weight.log_softmax(-1)
    torch.testing.assert_close(token_log_probs(model, batch).sum(), torch.stack([table[2, 3], table[4, 5]]))


def test_wrapped_models(model, make_examples, pad_batches):
    class Wrapper(nn.Module):  # as DistributedDataParallel
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    for batch in pad_batches(make_examples(4), 4, "left"):
        assert torch.equal(token_log_probs(Wrapper(model), batch).sum(), token_log_probs(model, batch).sum())
