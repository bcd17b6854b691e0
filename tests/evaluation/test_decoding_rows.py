"""How many rows decode at once, against memory that is reckoned from the model's config."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from wagle_trainer.evaluation import decoding_rows as rule
from wagle_trainer.evaluation.decoding_rows import MOST_ROWS, decoding_rows
from wagle_trainer.evaluation.prompt_states import prompt_states


@pytest.fixture
def states(llama):
    with torch.no_grad():
        return prompt_states(llama, [[5, 6, 7], [8, 9]])


@given(
    free=st.integers(0, 2**32),
    number=st.integers(1, 1000),
    length=st.integers(1, 5000),
    vocabulary=st.integers(1, 300_000),
    least=st.integers(1, 300),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_rows_fit_or_are_the_least(llama, states, monkeypatch, free, number, length, vocabulary, least):
    monkeypatch.setattr(rule, "free_memory", lambda device: free)
    config = llama.config
    width = config.hidden_size // config.num_attention_heads
    of_a_token = config.num_hidden_layers * 2 * config.num_key_value_heads * width * 4

    def needed(rows: int) -> int:
        return min(rows, number) * (length * of_a_token + 12 * vocabulary)

    rows = decoding_rows(states, number, length, vocabulary, least)
    assert least <= rows <= max(least, MOST_ROWS)
    assert rows == least or needed(rows) <= free / 4
    assert rows == max(least, MOST_ROWS) or needed(2 * rows + 1) > free / 4, "twice as many would have fit"
