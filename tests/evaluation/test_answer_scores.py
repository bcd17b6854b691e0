import math
import random

import pytest
import torch

from wagle_trainer.evaluation import AnswerScore, score_answers

EOS = 1
LENGTHS = [(3, 4), (9, 2), (1, 7), (5, 5), (4, 1), (12, 9), (2, 3)]


def make_examples(model) -> list[dict[str, list[int]]]:
    """Prompt, answer, EOS. Answers are the model's own choice with one token changed: extraction strength varies."""
    rng = random.Random(0)
    examples = []
    for prompt_length, answer_length in LENGTHS:
        ids = [rng.randrange(3, 40) for _ in range(prompt_length)]
        changed = rng.randrange(answer_length)
        for position in range(answer_length):
            best = int(model(torch.tensor([ids])).logits[0, -1, 2:].argmax()) + 2
            ids.append(2 + (best + 1) % 38 if position == changed else best)
        examples.append({"input_ids": [*ids, EOS], "labels": [-100] * prompt_length + ids[prompt_length:] + [EOS]})
    return examples


def one_by_one(model, example) -> tuple[float, int, float]:
    ids, labels = torch.tensor(example["input_ids"]), example["labels"]
    with torch.no_grad():
        log_probs = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
    start = next(position for position, label in enumerate(labels) if label != -100)
    positions = range(start, len(labels))
    mean = sum(log_probs[position - 1, ids[position]].item() for position in positions) / len(positions)
    right = [log_probs[position - 1].argmax() == ids[position] for position in positions][:-1]
    shortest = min(k for k in range(len(right) + 1) if all(right[k:]))
    return mean, len(positions), 1 - shortest / len(right)


def score(model, examples, **kwargs):
    names = [f"row {index}" for index in range(len(examples))]
    return score_answers(model, examples, names, eos_token_id=EOS, progress=False, **kwargs)


def test_equals_one_example_at_a_time(model):
    examples = make_examples(model)
    expected = [one_by_one(model, example) for example in examples]
    assert len({strength for _, _, strength in expected}) > 2  # else the comparison would say little
    for result, oracle in zip(score(model, examples, batch_size=3), expected, strict=True):
        assert (result.mean_log_prob, result.num_tokens, result.extraction_strength) == pytest.approx(oracle, abs=1e-5)


def numbers(score: AnswerScore) -> list[float]:
    """All that a score holds, in one list."""
    details = (score.is_top1, score.token_log_probs, score.vocabulary_mean, score.vocabulary_std)
    return [
        score.mean_log_prob,
        score.num_tokens,
        score.extraction_strength,
        *(x for row in details for x in row or []),
    ]


def tokens_one_by_one(model, example) -> list[tuple[bool, float, float, float]]:
    """For each token of the answer without its EOS: top-1, log-probability, and its mean and deviation under the model."""
    ids, start = example["input_ids"], example["labels"].count(-100)
    found = []
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).tolist()
    for position in range(start, len(ids) - 1):
        row = log_probs[position - 1]
        mean = sum(math.exp(x) * x for x in row)
        square = sum(math.exp(x) * x * x for x in row)
        chosen = row[ids[position]]
        found.append((chosen == max(row), chosen, mean, math.sqrt(square - mean**2)))
    return found


def test_tokens_and_vocabulary_equal_one_example_at_a_time(model):
    examples = make_examples(model)
    scores = score(model, examples, batch_size=3, tokens=True, vocabulary=True)
    for result, example in zip(scores, examples, strict=True):
        oracle = list(zip(*tokens_one_by_one(model, example), strict=True))
        assert result.is_top1 == list(oracle[0])
        for values, expected in zip(
            (result.token_log_probs, result.vocabulary_mean, result.vocabulary_std), oracle[1:], strict=True
        ):
            assert values == pytest.approx(expected, abs=1e-5)


def test_details_only_when_asked_for(llama):
    [plain, *_] = score(llama, make_examples(llama))
    assert (plain.is_top1, plain.token_log_probs, plain.vocabulary_mean, plain.vocabulary_std) == (None,) * 4
    [detailed, *_] = score(llama, make_examples(llama), vocabulary=True)
    assert detailed.token_log_probs is None
    assert len(detailed.vocabulary_std) == 4


def test_impossible_tokens_do_not_spoil_the_vocabulary(llama):
    """A vocabulary padded with tokens of logit minus infinity."""
    examples = make_examples(llama)
    expected = score(llama, examples, vocabulary=True)

    class Padded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = llama

        def forward(self, input_ids, attention_mask):
            output = self.model(input_ids, attention_mask)
            output.logits = torch.nn.functional.pad(output.logits, (0, 3), value=-torch.inf)
            return output

    for result, other in zip(score(Padded(), examples, vocabulary=True), expected, strict=True):
        assert numbers(result) == pytest.approx(numbers(other), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batch_size_and_order_change_nothing(model, batch_size):
    examples = make_examples(model)
    details = {"tokens": True, "vocabulary": True}
    expected = score(model, examples, batch_size=3, **details)
    order = random.Random(batch_size).sample(range(len(examples)), len(examples))
    shuffled = score(model, [examples[index] for index in order], batch_size=batch_size, **details)
    for index, result in zip(order, shuffled, strict=True):
        assert numbers(result) == pytest.approx(numbers(expected[index]), abs=1e-5)


def test_extraction_strength_leaves_out_the_end_of_the_turn(llama):
    """A chat template may put a line break after the end-of-sequence token: neither belongs to the answer."""
    [example] = make_examples(llama)[3:4]
    trailed = {key: [*tokens, 7] for key, tokens in example.items()}
    [plain], [chat] = score(llama, [example]), score(llama, [trailed])
    assert chat.extraction_strength == plain.extraction_strength > 0
    assert chat.num_tokens == plain.num_tokens + 1


def test_leaves_the_model_as_found(llama):
    llama.train()
    llama.lm_head.eval()  # a mixed state must survive too
    before = {name: module.training for name, module in llama.named_modules()}
    score(llama, make_examples(llama))
    assert {name: module.training for name, module in llama.named_modules()} == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in llama.parameters())
    llama(torch.tensor([[3, 4]]), labels=torch.tensor([[3, 4]])).loss.backward()  # nothing is an inference tensor


def test_dropout_is_off(tokenizer, llama):
    llama.config.attention_dropout = 0.9
    for layer in llama.model.layers:
        layer.self_attn.attention_dropout = 0.9
    examples = make_examples(llama)
    expected = score(llama, examples)
    assert score(llama.train(), examples) == expected


def test_mode_is_restored_after_an_error(llama):
    examples = make_examples(llama)
    with torch.no_grad():
        llama.lm_head.weight[examples[2]["labels"][-2]] = float("nan")
    llama.train()
    with pytest.raises(FloatingPointError, match=r"row \d: the log-probability of the answer is nan"):
        score(llama, examples)
    assert llama.training


def test_answer_without_tokens_names_the_row(llama):
    examples = make_examples(llama)
    examples[1] = {"input_ids": [5, 6, EOS], "labels": [-100, -100, EOS]}
    with pytest.raises(ValueError, match="row 1: the answer has no tokens"):
        score(llama, examples)


def test_batch_size_below_one(llama):
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        score(llama, make_examples(llama), batch_size=0)
