"""Continuations of prompts that enter a running batch, against `generate` on each prompt alone."""

import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from transformers import GenerationConfig

from wagle_trainer.evaluation import continuous_batches, decoding_rows
from wagle_trainer.evaluation.continuous_batches import generate_continuously, joined
from wagle_trainer.evaluation.prompt_states import common_states, prompt_states
from wagle_trainer.models.modes import evaluation_mode

STOP = (1, 7, 19)
CONFIG = GenerationConfig(do_sample=False, num_beams=1, pad_token_id=0, eos_token_id=list(STOP), use_cache=True)


def draw_prompts(seed: int, number: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[4, 9, *(rng.randrange(3, 40) for _ in range(rng.randrange(2, 12)))] for _ in range(number)]


def alone(model, prompt, limit) -> list[int]:
    """What `generate` writes behind one prompt."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        pad_token_id=0,
        eos_token_id=list(STOP),
    )
    return output[0, len(prompt) :].tolist()


def together(model, prompts, limits, batch_size, **options):
    with evaluation_mode(model):
        return generate_continuously(model, prompts, limits, CONFIG, STOP, batch_size=batch_size, **options)


@pytest.fixture
def rows_of_steps(monkeypatch):
    """Rows of each forward pass that writes tokens, from now on."""
    found, original = [], continuous_batches._step

    def step(model, states, last, config):
        found.append(len(last))
        return original(model, states, last, config)

    monkeypatch.setattr(continuous_batches, "_step", step)
    return found


@given(
    seed=st.integers(0, 10_000),
    limits=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    batch_size=st.integers(1, 5),
    most=st.integers(1, 9),
    common=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_each_prompt_alone(model, monkeypatch, rows_of_steps, seed, limits, batch_size, most, common):
    monkeypatch.setattr(decoding_rows, "MOST_ROWS", most)
    monkeypatch.setattr("wagle_trainer.evaluation.prompt_states.MIN_SAVED", 0)
    rows_of_steps.clear()
    prompts, ended = draw_prompts(seed, len(limits)), []
    with torch.no_grad():
        states = common_states(model, prompts) if common else None
    found = together(model, prompts, limits, batch_size, common=states, ended=ended.append)
    assert found == [alone(model, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    assert sum(ended) == len(prompts)
    assert max(rows_of_steps) == rows_of_steps[0] == min(len(prompts), max(batch_size, most))


def test_memory_that_does_not_suffice_leaves_the_rows_of_the_batch_size(llama, monkeypatch):
    """What was written is kept, and no prompt is lost."""
    prompts, limits, sizes = draw_prompts(0, 9), [40] * 9, []
    expected = together(llama, prompts, limits, 9)
    original = continuous_batches._step

    def step(model, states, last, config):
        sizes.append(len(last))
        if len(last) > 3 and len(sizes) > 1:
            raise torch.OutOfMemoryError("no memory")
        return original(model, states, last, config)

    monkeypatch.setattr(continuous_batches, "_step", step)
    assert together(llama, prompts, limits, 3) == expected
    assert sizes[0] == 9 and max(sizes[2:]) == 3
    longest = max(map(len, expected))
    assert longest > continuous_batches.LOOK_EVERY, "some answers go on behind the tokens that they had"
    with pytest.raises(torch.OutOfMemoryError):
        together(llama, prompts, limits, 5)


def test_no_more_rows_than_memory_holds(llama, monkeypatch, rows_of_steps):
    prompts = draw_prompts(1, 9)
    monkeypatch.setattr(decoding_rows, "free_memory", lambda device: 0)
    together(llama, prompts, [20] * 9, 2)
    assert max(rows_of_steps) == 2


@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_joined_rows_keep_their_states_without_gaps(llama, seed, sizes):
    prompts = draw_prompts(seed, sum(sizes))
    groups = [prompts[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    with torch.no_grad():
        parts = [prompt_states(llama, group) for group in groups]
        alone_states = [prompt_states(llama, [prompt]) for prompt in prompts]
    found = joined(llama, parts)
    assert found.mask.shape == (len(prompts), max(map(len, prompts)))
    assert found.lengths.tolist() == [len(prompt) for prompt in prompts]
    for row, states in enumerate(alone_states):
        places = found.mask[row].bool()
        for layer, wanted in zip(found.cache.layers, states.cache.layers, strict=True):
            torch.testing.assert_close(layer.keys[row][:, places], wanted.keys[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.values[row][:, places], wanted.values[0], rtol=1e-4, atol=1e-5)
