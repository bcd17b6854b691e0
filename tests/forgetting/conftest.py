"""A small Llama that knows ten invented people, in a folder, and files of what to forget and to keep."""

import json
from types import SimpleNamespace

import pytest

from wagle_trainer.data import fictional_split, fictional_tokenizer

PEOPLE = 10


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def people(make_taught_llama, tmp_path_factory):
    """model, tokenizer: objects; path: their folder; forget, retain: files; rows, others: what is in them."""
    folder = tmp_path_factory.mktemp("people")
    tokenizer = fictional_tokenizer(PEOPLE)
    model = make_taught_llama(tokenizer, fictional_split("full", PEOPLE), 64, 8e-3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows, others = list(fictional_split("forget10", PEOPLE)), list(fictional_split("retain90", PEOPLE))
    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        path=str(folder / "model"),
        forget=write_rows(folder / "forget.jsonl", rows),
        retain=write_rows(folder / "retain.jsonl", others),
        rows=rows,
        others=others,
    )


@pytest.fixture(scope="session")
def quick():
    """Settings of a search that takes seconds."""
    return {
        "densities": (1e-4, 0.2),  # the first one is too small
        "embeddings": "never",
        "learning_rates": (1e-4, 1e-3, 1e-2),
        "steps": 40,
        "utility_floor": 0.6,
        "forget_goal": 0.3,
        "relearning_rate": 1e-3,
    }
