"""Log-probabilities of target tokens against one unpadded forward pass per example and a full log-softmax."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wagle_trainer.models import log_probs as likelihood
from wagle_trainer.models.log_probs import joint_token_log_probs, token_log_probs


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
def test_a_compiled_model_is_asked_the_same(model, make_examples, pad_batches, side):
    """It hides what its forward pass takes: the head would run on all positions, and left padding would count."""
    (batch,) = pad_batches(make_examples(3, seed=1, prompt=(4, 4)), 3, side)
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        found = [token_log_probs(m, batch).log_probs for m in (model, torch.compile(model, backend="eager"))]
    torch.testing.assert_close(*found)
    assert seen[0] == seen[1]


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


# Several batches in one forward pass


@pytest.fixture
def splits(make_examples, pad_batches):
    """splits(sides) -> forget, chosen and retain batches, of other sizes and lengths; retain longest."""

    def make(forget="right", chosen="right", retain="right"):
        lengths = {"forget": (3, (1, 4), (1, 6)), "chosen": (2, (1, 2), (1, 3)), "retain": (4, (3, 6), (4, 9))}
        sides = {"forget": forget, "chosen": chosen, "retain": retain}
        return {
            name: pad_batches(make_examples(rows, seed, prompt, answer), rows, sides[name])[0]
            for seed, (name, (rows, prompt, answer)) in enumerate(lengths.items())
        }

    return make


@pytest.fixture
def forwards(model):
    """The shapes that the model was called with."""
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return seen


def assert_joint_is_separate(model, batches, **settings):
    """Losses and, of a sum that tells all tokens apart, gradients; and the logits of the target tokens."""
    joint = joint_token_log_probs(model, batches, keep_logits=("retain",), **settings)
    assert list(joint) == list(batches)
    alone = {name: token_log_probs(model, batch, keep_logits=True) for name, batch in batches.items()}
    gradients = []
    for results in (joint, alone):
        total = sum((result.log_probs * result.log_probs.detach().cos()).sum() for result in results.values())
        gradients.append(torch.autograd.grad(total, list(model.parameters())))
    for name, found in joint.items():
        expected = alone[name]
        assert torch.equal(found.mask, expected.mask)
        torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
        if name != "retain":
            assert found.logits is None
            assert found.kept is None
            continue
        logits = [result.logits[result.mask[:, result.kept]] for result in (found, expected)]
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize(
    "sides", [("right",) * 3, ("left",) * 3, ("left", "right", "left"), ("right", "right", "left")]
)
def test_joint_is_separate(model, splits, forwards, sides):
    batches = splits(*sides)
    length = batches["retain"]["labels"].shape[1]
    assert length > batches["forget"]["labels"].shape[1] > batches["chosen"]["labels"].shape[1]
    assert_joint_is_separate(model, batches)
    assert forwards[0] == (9, length)
    assert len(forwards) == 1 + 3


def test_ragged_batches_stay_separate(model, splits, forwards, monkeypatch):
    batches = splits()
    rows, lengths = zip(*(batch["labels"].shape for batch in batches.values()), strict=True)
    monkeypatch.setattr(likelihood, "MAX_PADDING", rows[0] * (lengths[2] - lengths[0]))
    assert_joint_is_separate(model, batches)  # chosen would add more padding
    assert forwards[:2] == [(7, lengths[2]), (2, lengths[1])]
    monkeypatch.setattr(likelihood, "MAX_PADDING", rows[0] * (lengths[2] - lengths[0]) - 1)
    forwards.clear()
    assert_joint_is_separate(model, batches)
    assert forwards[:2] == [(4, lengths[2]), (5, lengths[0])]


def test_processes_agree_on_what_is_joined(model, splits, forwards):
    """The shapes averaged over processes decide, not those of this one."""
    seen = []

    def ragged_elsewhere(shapes):
        seen.append(shapes.clone())
        shapes[2, 1] = 1000
        return shapes

    batches = splits()
    assert_joint_is_separate(model, batches, agree=ragged_elsewhere)
    assert seen[0].tolist() == [list(batch["labels"].shape) for batch in batches.values()]
    assert [rows for rows, _ in forwards[:2]] == [4, 5]


def test_lengths_that_only_agree_elsewhere(model, splits, forwards):
    """The longest on average may be a shorter one here."""
    assert_joint_is_separate(model, splits(), agree=lambda shapes: torch.tensor([[3.0, 9.0], [2.0, 9.0], [4.0, 9.0]]))
    assert forwards[0][0] == 9


def test_joint_takes_no_other_columns(model, splits, forwards):
    batches = splits()
    batches["retain"]["index"] = torch.arange(4)
    assert_joint_is_separate(model, batches)
    assert len(forwards) == 4


@pytest.mark.parametrize("changed", ["position_ids", "no attention_mask"])
def test_different_inputs_are_not_joined(changed, model, splits, forwards):
    batches = splits()
    retain = batches["retain"]
    if changed == "position_ids":
        retain["position_ids"] = torch.arange(retain["labels"].shape[1]).expand_as(retain["labels"])
    else:
        del retain["attention_mask"]
    assert_joint_is_separate(model, batches)
    assert [rows for rows, _ in forwards[:2]] == [4, 5]


def test_given_positions_are_joined(model, splits, forwards):
    batches = splits(retain="left")
    for batch in batches.values():
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert_joint_is_separate(model, batches)
    assert len(forwards) == 4


def test_batches_without_a_mask_are_not_joined(model, forwards):
    ids = torch.randint(5, 57, (2, 6))
    batches = {name: {"input_ids": ids, "labels": ids} for name in ("forget", "retain")}
    assert_joint_is_separate(model, batches)
    assert len(forwards) == 4


@pytest.mark.parametrize("without", ["forget", "retain"])
def test_a_batch_without_labels_in_a_joint_pass(without, model, splits):
    batches = splits()
    batches[without]["labels"] = torch.full_like(batches[without]["labels"], -100)
    assert_joint_is_separate(model, batches)
    found = joint_token_log_probs(model, batches)[without].sum()
    assert found.tolist() == [0] * len(found)
    found.sum().backward()


def test_joint_of_models_that_compute_all_logits(splits):
    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(57, 57)

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=self.table(input_ids))

    assert_joint_is_separate(Bigram(), splits("left"))
