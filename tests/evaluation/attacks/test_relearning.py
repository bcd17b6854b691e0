import copy
import random

import numpy as np
import pytest
import torch

from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation.attacks import run_attacks


def bits_of(model):
    return [weight.detach().clone().view(torch.int32) for weight in model.parameters()]


def relearn(before, after, tokenizer, rows, attack="relearning", measure=None, **options):
    return run_attacks(
        before, after, tokenizer, rows, [attack], options={attack: options}, measure=measure, progress=False
    )[attack]


def test_the_rest_comes_back_and_the_model_is_left_as_it_was(before, after, tokenizer, rows):
    weights = bits_of(after)
    after.train()
    frozen, graded = list(after.parameters())[:2]
    frozen.requires_grad_(False)
    graded.grad = torch.ones_like(graded)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    drawn = []
    try:
        for _ in range(2):
            random.seed(1), np.random.seed(1), torch.manual_seed(1)
            result = relearn(before, after, tokenizer, rows, learning_rate=1e-3, steps=[5, 20, 1])
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
            assert all(map(torch.equal, bits_of(after), weights))
            assert after.training
            assert all(module.training for module in after.modules())
            assert not frozen.requires_grad
            assert torch.equal(graded.grad, torch.ones_like(graded))
            assert frozen.grad is None
    finally:
        after.eval()
        frozen.requires_grad_(True)
        graded.grad = None
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert drawn == [(random.random(), np.random.rand(), torch.rand(1).item())] * 2, "random numbers were used up"
    again = relearn(before, after, tokenizer, rows, learning_rate=1e-3, steps=[1, 5, 20])
    assert result["points"] == again["points"], "not seeded"

    points = result["points"]
    assert [point["x"] for point in points] == [0, 1, 5, 20]
    assert points[0]["recovered"] == 0
    assert points[0]["forget"] == result["baseline"]
    assert points[-1]["recovered"] > 0.3
    assert result["recovered"] == max(point["recovered"] for point in points)


def test_measured_are_the_rows_that_were_not_trained_on(before, after, tokenizer, rows):
    measured = []

    def measure(model, tokenizer, rows):
        measured.append([row["question"] for row in rows])
        return 1.0 if model is before else 0.5

    relearn(before, after, tokenizer, rows, measure=measure, share=0.3, steps=[1])
    everything, rest = measured[0], measured[2]
    assert everything == [row["question"] for row in rows]
    assert measured[2:] == [rest] * 3  # before, after, attacked
    assert len(rest) == 7
    assert set(rest) < set(everything)


def test_one_step_equals_adamw_by_hand(before, after, tokenizer, rows, retain_rows):
    """All of the unrelated rows in one batch: the loss is the mean over examples of the mean over answer tokens."""
    other = retain_rows[:4]
    model = copy.deepcopy(after).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    qa = QAFormat.for_tokenizer(tokenizer)
    losses = []
    for row in other:
        example = qa.encode(row["question"], row["answer"])
        losses.append(model(**{key: torch.tensor([value]) for key, value in example.items()}).loss)
    torch.stack(losses).mean().backward()
    optimizer.step()
    model.eval()
    seen = []

    def measure(attacked, tokenizer, rows):
        ids = torch.tensor([qa.encode(rows[0]["question"], rows[0]["answer"])["input_ids"]])
        with torch.no_grad():
            seen.append(attacked.eval()(ids).logits)
        return 1.0 if attacked is before else 0.5

    relearn(
        before,
        after,
        tokenizer,
        rows,
        "relearning_unrelated",
        measure,
        data=other,
        steps=[1],
        learning_rate=1e-3,
        batch_size=4,
    )
    ids = torch.tensor([qa.encode(rows[0]["question"], rows[0]["answer"])["input_ids"]])
    with torch.no_grad():
        # Adam's first step has no size, only a sign: where a gradient is all but zero, rounding decides.
        torch.testing.assert_close(seen[-1], model(ids).logits, rtol=2e-2, atol=2e-2)
    assert not torch.allclose(seen[-1], seen[1], rtol=2e-2, atol=2e-2)


def test_unrelated_rows(before, after, tokenizer, rows, retain_rows):
    result = relearn(
        before, after, tokenizer, rows, "relearning_unrelated", data=retain_rows, learning_rate=1e-3, steps=[10]
    )
    assert 0.1 < result["recovered"] <= 1
    assert result["settings"]["options"]["data"] == "90 rows"
    with pytest.raises(ValueError, match="1 of the 91 rows are forget questions"):
        relearn(before, after, tokenizer, rows, "relearning_unrelated", data=[*retain_rows, rows[0]])
    with pytest.raises(ValueError, match="no data to train on"):
        relearn(before, after, tokenizer, rows, "relearning_unrelated", data=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, "share must lie between 0 and 1"),
        ({"steps": []}, "steps must be whole numbers"),
        ({"steps": [0, 1]}, "steps must be whole numbers"),
        ({"batch_size": 0}, "must be positive"),
        ({"learning_rate": 0.0}, "must be positive"),
    ],
)
def test_options_out_of_range(before, after, tokenizer, rows, options, message):
    with pytest.raises(ValueError, match=message):
        relearn(before, after, tokenizer, rows, measure=lambda model, *_: 1.0 if model is before else 0.0, **options)


def test_a_diverging_run_says_so_and_leaves_the_model_alone(before, after, tokenizer, rows):
    weights = bits_of(after)
    measure = lambda model, *_: 1.0 if model is before else 0.0  # noqa: E731
    with pytest.raises(FloatingPointError, match="the loss of step .* lower learning_rate"):
        relearn(before, after, tokenizer, rows, measure=measure, learning_rate=1e30, steps=[5])
    assert all(map(torch.equal, bits_of(after), weights))


def test_one_question_cannot_be_divided(before, after, tokenizer, rows):
    with pytest.raises(ValueError, match="at least two"):
        relearn(before, after, tokenizer, rows[:1], measure=lambda model, *_: 1.0 if model is before else 0.0)
