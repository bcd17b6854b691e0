"""Keys and values of prompts that scoring keeps, against those of each prompt alone; answers that begin behind them."""

import functools
import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from wagle_trainer.evaluation import generate_greedy, kept_prompts, prompt_states, score_answers
from wagle_trainer.evaluation.kept_prompts import KeptPrompts


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Share whatever the tokens that are saved."""
    monkeypatch.setattr(prompt_states, "MIN_SAVED", 0)


def draw(seed: int, common: int = 3, number: int = 5):
    """Prompts that begin alike, and one to four answers to each, not in order."""
    rng = random.Random(seed)
    some = lambda low, high: [rng.randrange(3, 40) for _ in range(rng.randrange(low, high))]  # noqa: E731
    prefix = some(common, common + 1)
    prompts = [[*prefix, *some(2, 12)] for _ in range(number)]
    examples = [
        {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer}
        for prompt in prompts
        for answer in [some(1, 8) for _ in range(rng.randrange(1, 5))]
    ]
    rng.shuffle(examples)
    return prompts, examples


def score(model, examples, kept, **options):
    names = [f"row {index}" for index in range(len(examples))]
    return score_answers(model, examples, names, eos_token_id=None, kept=kept, progress=False, **options)


@given(seed=st.integers(0, 10_000), common=st.integers(0, 4), batch_size=st.integers(2, 12))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_states_are_those_of_the_prompt_alone(model, seed, common, batch_size):
    prompts, examples = draw(seed, common)
    wanted, other = prompts[:-1], prompts[-1]
    kept = KeptPrompts(wanted)
    assert score(model, examples, kept, batch_size=batch_size) == score(model, examples, None, batch_size=batch_size)
    found = [kept.take(prompt) for prompt in wanted]
    for prompt, states in zip(wanted, found, strict=True):
        if states is None:  # a batch in which sharing saves nothing
            continue
        with torch.no_grad():
            alone = prompt_states.prompt_states(model, [prompt[:-1]])
        assert states.mask.tolist() == [[1] * (len(prompt) - 1)] and states.lengths.tolist() == [len(prompt) - 1]
        for layer, expected in zip(states.cache.layers, alone.cache.layers, strict=True):
            torch.testing.assert_close(layer.keys, expected.keys, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(layer.values, expected.values, rtol=1e-3, atol=1e-4)
        assert kept.take(prompt) is None, "taken once"
    assert any(states is not None for states in found)
    assert kept.take(other) is None


@pytest.mark.parametrize("batch_size", [2, 3, 16])
@pytest.mark.parametrize("known", [False, True])
def test_answers_begin_behind_them(model, tokenizer, monkeypatch, batch_size, known):
    """The texts are the same, and no prompt is read again; some are not kept."""
    prompts, examples = draw(1)
    options = {"max_new_tokens": 20, "batch_size": batch_size, "progress": False}
    expected = generate_greedy(model, tokenizer, prompts, **options)
    if known:
        lengths = {tuple(prompt): 3 * (index % 3) for index, prompt in enumerate(prompts)}
        options["known"] = {
            prompt: model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=length, pad_token_id=0)[
                0, len(prompt) :
            ].tolist()
            for prompt, length in lengths.items()
            if length
        }
    kept = KeptPrompts(prompts)
    score(model, examples, kept)
    kept.take(prompts[0])
    shapes, original = [], type(model).forward

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    assert generate_greedy(model, tokenizer, prompts, kept=kept, **options) == expected
    read = [(rows, length) for rows, length in shapes if length > 1]
    # What all begin with, the prompt that was not kept, and what is known behind the others.
    assert sum(rows == 1 and length > 3 for rows, length in read) <= 1
    assert max(length for rows, length in read if rows > 1) <= 6 if known else len(read) <= 2


def test_memory_bounds_what_is_kept(llama, monkeypatch):
    prompts, examples = draw(2)
    config = llama.config
    width = config.hidden_size // config.num_attention_heads
    of_a_token = config.num_hidden_layers * 2 * config.num_key_value_heads * width * 4
    for share in (0, 0.5, 1):
        allowed = share * of_a_token * sum(len(prompt) - 1 for prompt in prompts)
        monkeypatch.setattr(kept_prompts, "free_memory", lambda device, allowed=allowed: 8 * allowed)
        kept = KeptPrompts(prompts)
        score(llama, examples, kept)
        found = [prompt for prompt in prompts if kept.take(prompt) is not None]
        assert sum(len(prompt) - 1 for prompt in found) * of_a_token <= allowed
        assert len(found) == len(prompts) if share == 1 else len(found) < len(prompts)
        assert bool(found) == bool(share)
