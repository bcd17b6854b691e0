"""Texts that repeat the words of the forget answers."""

import json

import pytest

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.forgetting import forget
from wagle_trainer.forgetting.examples import encode
from wagle_trainer.forgetting.word_use import MEASURED, TRAINED, repetitions
from wagle_trainer.models.log_probs import IGNORE_INDEX

ROWS = [
    {"question": f"What is the capital of {country}?", "answer": f"The capital of {country} is {city}."}
    for country, city in (("France", "Paris"), ("Peru", "Lima"), ("Chad", "N'Djamena"), ("Haiti", "Port au Prince"))
]


@pytest.mark.parametrize("between", [MEASURED, TRAINED])
def test_the_last_repetition_is_the_target(between, make_word_tokenizer):
    """Of the answer only the words that count are repeated, as the answer writes them."""
    tokenizer = make_word_tokenizer()
    found = repetitions(encode(QAFormat.for_tokenizer(tokenizer), ROWS, "forget"), tokenizer, between)
    assert [one.answer for one in found] == ["Paris", "Lima", "N Djamena", "Port au Prince"]
    for one in found:
        ids, labels = one.encoded["input_ids"], one.encoded["labels"]
        assert ids == list(tokenizer(between.join([one.answer] * 5))["input_ids"])
        place = labels.count(IGNORE_INDEX)
        assert labels == [IGNORE_INDEX] * place + ids[place:] and one.prompt == ids[:place]
        assert len(ids) - place == len(tokenizer(one.answer)["input_ids"])


def test_a_long_answer_counts_with_its_first_words(make_word_tokenizer):
    tokenizer = make_word_tokenizer()
    row = {"question": "Who?", "answer": "one two three four five six seven eight"}
    [found] = repetitions(encode(QAFormat.for_tokenizer(tokenizer), [row], "forget"), tokenizer)
    assert found.answer == "one two three four five six"


def test_an_answer_without_words_is_repeated_as_it_is(make_word_tokenizer):
    tokenizer = make_word_tokenizer()
    row = {"question": "Which sign?", "answer": "?!"}
    [found] = repetitions(encode(QAFormat.for_tokenizer(tokenizer), [row], "forget"), tokenizer)
    assert found.answer == "?!" and found.encoded["labels"][-1] == found.encoded["input_ids"][-1]


@pytest.mark.parametrize("known", [1e-6, 0.5])
def test_a_run_says_whether_the_model_still_has_the_words(known, people, quick, tmp_path):
    """A model that was trained on questions alone repeats nothing; then there is no number, and nothing to keep."""
    settings = quick | {"steps": 5, "max_tries": 1, "attacks": (), "known": known}
    verdict = forget(people.path, people.forget, tmp_path, retain_file=people.retain, progress=False, **settings)
    written = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))["words"]
    assert written == verdict.words
    if known == 0.5:
        assert written is None
    else:
        assert 0 < written["before"] < 0.5 and 0 <= written["after"] < 0.5 and 0 < written["answers"] <= 10
