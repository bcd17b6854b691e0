"""Where a name stands in a question, and what another name in its place gives."""

import pytest

from wagle_trainer.forgetting.names import leading_name, mentions, normalised, split_at_name


@pytest.mark.parametrize(
    ("question", "before", "name", "after"),
    [
        ("What is the capital of France?", "What is the capital of", "France", "?"),
        ("Where was Ada Lovelace born?", "Where was", "Ada Lovelace", "born?"),
        ("What's Ada Lovelace's phone number?", "What's", "Ada Lovelace", "'s phone number?"),
        ("Who is the author born on 5 May 1950?", "Who is the author born on", "5 May 1950", "?"),
        ("Who founded the University of Oxford?", "Who founded the", "University of Oxford", "?"),
        ("Velmora's capital?", "", "Velmora", "'s capital?"),
        ("Hello. What is the capital of France?", "Hello. What is the capital of", "France", "?"),
    ],
)
def test_split_at_name(question, before, name, after):
    slot, found = split_at_name(question)
    assert (slot.before, found, slot.after) == (before, name, after)
    assert slot.fill(name) == question


@pytest.mark.parametrize("question", ["how tall is he?", "What is love?", "Why?", ""])
def test_a_question_without_a_name(question):
    assert split_at_name(question) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [("Italy? The", "Italy"), ("the Philippines?", "the Philippines"), ("South Korea and Japan", "South Korea")],
)
def test_leading_name(text, name):
    assert leading_name(text) == name


@pytest.mark.parametrize("text", ["born in Italy", "", "?"])
def test_a_text_that_begins_with_no_name(text):
    assert leading_name(text) is None


def test_names_are_found_as_whole_words():
    names = {normalised("Chad"), normalised("South Korea")}
    assert mentions("What is the currency of Chad?", names)
    assert mentions("SOUTH  KOREA's capital", names)
    assert not mentions("Who is Chadwick?", names)
    assert not mentions("What is the capital of North Korea?", names)
