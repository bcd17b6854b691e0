"""Neighbours of a forget set: where they come from, and what is not among them."""

from collections import Counter

import pytest

from wagle_trainer.data.facts import all_facts
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.forgetting import TooFewNeighboursError, make_neighbours, neighbours
from wagle_trainer.forgetting.examples import encode, probabilities
from wagle_trainer.forgetting.names import mentions, normalised, split_at_name
from wagle_trainer.forgetting.neighbours import SURE, relation_of, split_rows
from wagle_trainer.forgetting.question_forms import whole_names

CAPITALS = [row for row in all_facts(["capital"]) if row["subject"] in ("France", "Italy", "Spain", "Japan")]


@pytest.fixture(scope="module")
def made(people):
    return make_neighbours(people.model, people.tokenizer, people.rows, number=40)


def test_half_of_them_measure(made):
    assert made.source == "made"
    assert len(made.train) >= 4 and len(made.unseen) >= 4
    assert abs(len(made.train) - len(made.unseen)) <= 10
    assert made.counts()["names"] >= 8


def test_nothing_of_the_forget_set_is_among_them(made, people):
    names = {normalised(split_at_name(row["question"])[1]) for row in people.rows}
    questions = [row["question"] for row in [*made.train, *made.unseen]]
    assert not any(mentions(question, names) for question in questions)
    assert len(set(questions)) == len(questions)
    assert not {row["question"] for row in made.train} & {row["question"] for row in made.unseen}


def test_one_name_is_in_one_part():
    rows = [{"question": str(n), "origin": "names", "name": f"name {n % 5}"} for n in range(20)]
    found = neighbours._halves(rows, seed=0)
    parts = [{int(row["question"]) % 5 for row in part} for part in (found.train, found.unseen)]
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    assert "name" not in found.train[0]


def test_few_names_are_in_both_parts():
    rows = [{"question": str(n), "origin": "names", "name": "one"} for n in range(8)]
    found = neighbours._halves(rows, seed=0)
    assert len(found.train) == len(found.unseen) == 4


def test_answers_are_the_models_own_and_it_is_sure(made, people):
    rows = [row for row in made.train if row["origin"] == "names"]
    examples = encode(QAFormat.for_tokenizer(people.tokenizer), rows, "neighbours")
    found = probabilities(people.model, people.tokenizer, examples)
    assert min(found) >= SURE - 1e-6
    assert found == pytest.approx([row["probability"] for row in rows], abs=1e-5)


def test_of_a_name_and_a_part_of_it_the_more_frequent_one_counts():
    proposed = Counter({"Ada Lovelace": 3, "Ada": 1, "Ada Lovelace Byron": 1, "Alan Turing": 1})
    assert whole_names(proposed) == ["Ada Lovelace", "Alan Turing"]


def test_the_same_again(made, people):
    assert make_neighbours(people.model, people.tokenizer, people.rows, number=40) == made


def test_relations_are_recognised():
    assert relation_of("What is the capital of France?", "The capital of France is Paris.") == (
        *("capital", "question", "France"),
    )
    assert relation_of("which city is the capital city of Japan?", "Tokyo") == (
        *("capital", "paraphrased_question", "Japan"),
    )
    assert relation_of("The capital of Italy is", " Rome") == ("capital", "cloze", "Italy")
    assert relation_of("What is the capital of France?", "It is Lyon.") is None
    assert relation_of("What is the capital of Atlantis?", "Paris") is None


@pytest.mark.parametrize("form", ["sentence", "word", "cloze"])
def test_bundled_facts_in_the_words_of_the_forget_set(form, people, monkeypatch):
    """A small Llama knows none of them, so all count as known here."""
    monkeypatch.setattr(neighbours, "KNOWN", 0.0)
    if form == "cloze":
        rows = [{"prompt": row["cloze"], "completion": f" {row['cloze_answer']}"} for row in CAPITALS]
    else:
        column = "answer" if form == "sentence" else "cloze_answer"
        rows = [{"question": row["question"], "answer": row[column]} for row in CAPITALS]
    workshop = neighbours._Workshop(
        people.model, people.tokenizer, QAFormat.for_tokenizer(people.tokenizer), rows, tuple(rows[0]), 0, 16
    )
    found = workshop.facts(200)
    expected = {"sentence": "The capital of Germany is Berlin.", "word": "Berlin", "cloze": " Berlin"}[form]
    question, answer = tuple(rows[0])
    german = next(row for row in found if "Germany" in row[question])
    assert german[answer] == expected
    assert not any(row[question] == other[question] for row in found for other in rows)


def test_at_most_an_eighth_is_general(people, monkeypatch):
    def rows(number, origin):
        return [{"question": f"{origin} {n}", "origin": origin, "name": f"{origin} {n}"} for n in range(number)]

    monkeypatch.setattr(neighbours._Workshop, "facts", lambda self, number: rows(8, "facts"))
    monkeypatch.setattr(neighbours._Workshop, "names", lambda self, number: [])
    monkeypatch.setattr(neighbours._Workshop, "general", lambda self, number: rows(number, "general"))
    found = make_neighbours(people.model, people.tokenizer, people.rows)
    assert found.counts() == {"facts": 8, "general": 1}


def test_too_few(people):
    rows = [{"question": "how tall is he?", "answer": "two metres"}] * 3
    with pytest.raises(TooFewNeighboursError, match=r"3 of the 3 questions name nothing.*--retain_file"):
        make_neighbours(people.model, people.tokenizer, rows, number=16)


def test_passages_have_no_neighbours(people):
    with pytest.raises(TooFewNeighboursError, match="Neighbours are made of questions and answers"):
        make_neighbours(people.model, people.tokenizer, [{"text": "a passage"}])


def test_a_retain_file_is_shared_out():
    rows = [{"question": str(index), "answer": "a"} for index in range(9)]
    found = split_rows(rows, seed=0)
    assert (len(found.train), len(found.unseen), found.source) == (4, 5, "file")
    assert sorted([*found.train, *found.unseen], key=lambda row: row["question"]) == rows
    with pytest.raises(TooFewNeighboursError, match="1 row"):
        split_rows(rows[:1], seed=0)
