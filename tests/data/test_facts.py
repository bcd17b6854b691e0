"""Bundled public facts: what the rows hold, what counts as known, and how the splits come about."""

from collections import Counter

import pytest
import torch

from wagle_trainer.data import all_facts, fact_relations, load_facts
from wagle_trainer.data import facts as facts_module
from wagle_trainer.data.facts import cloze_probabilities, encode_cloze
from wagle_trainer.data.facts_tables import RELATIONS

ROWS = list(all_facts())


def test_at_least_600_facts_in_8_relations():
    assert len(ROWS) >= 600
    assert len(fact_relations()) >= 8
    assert Counter(row["relation"] for row in ROWS).keys() == set(fact_relations())
    assert len({row["question"] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", list(RELATIONS))
def test_no_subject_twice_in_a_table(name):
    """A dict would swallow the first one."""
    entries = [entry for entry in RELATIONS[name].pairs.replace("\n", " ").split(";") if entry.strip()]
    assert len(entries) == len(RELATIONS[name].facts())
    assert all(subject.strip() and answer.strip() for subject, answer in RELATIONS[name].facts().items())


def test_each_row_has_its_answer_and_five_wrong_ones():
    for row in ROWS:
        assert row["cloze_answer"] in row["answer"]
        assert row["cloze_answer"] in row["paraphrased_answer"]
        assert len(set(row["perturbed_answer"])) == 5
        assert row["paraphrased_answer"] not in row["perturbed_answer"]
        assert row["paraphrased_question"] != row["question"]
        for cloze in (row["cloze"], row["paraphrased_cloze"]):
            assert not cloze.endswith((" ", "."))
        for text in (row["question"], row["answer"], row["paraphrased_answer"], row["cloze"]):
            assert text[0].isupper()
            assert "{" not in text


def test_wrong_answers_are_answers_of_the_same_relation():
    answers = {name: set(relation.facts().values()) for name, relation in RELATIONS.items()}
    for row in ROWS:
        template = RELATIONS[row["relation"]].paraphrased_answer
        possible = {template.format(subject=row["subject"], object=o) for o in answers[row["relation"]]}
        assert {text[1:] for text in row["perturbed_answer"]} <= {text[1:] for text in possible}


def test_rows_do_not_depend_on_which_relations_are_asked_for():
    assert list(all_facts(["currency"])) == [row for row in ROWS if row["relation"] == "currency"]
    with pytest.raises(ValueError, match="Unknown relation colour"):
        all_facts(["colour"])


@pytest.fixture
def known(monkeypatch):
    """A model that knows the capitals and symbols, and half of the numbers."""
    seen = []

    def probabilities(model, tokenizer, rows, **_):
        seen.append(len(rows))
        return [
            0.9 if row["relation"] in ("capital", "element_symbol") or row["cloze_answer"] in "13579" else 0.1
            for row in rows
        ]

    monkeypatch.setattr(facts_module, "cloze_probabilities", probabilities)
    return seen


def test_keeps_what_is_known_and_splits_it(known):
    splits = load_facts(None, None)
    assert known == [len(ROWS)]
    number = sum(row["relation"] in ("capital", "element_symbol") or row["cloze_answer"] in "13579" for row in ROWS)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "forget": number // 4,
        "retain": number // 2,
        "unseen": number // 4,
    }
    questions = [row["question"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions)
    assert all(row["probability"] == 0.9 for rows in splits.values() for row in rows)


def test_the_seed_decides(known):
    def forget(seed):
        return load_facts(None, None, forget=10, retain=20, unseen=5, seed=seed)["forget"]["question"]

    assert list(forget(1)) == list(forget(1))
    assert list(forget(1)) != list(forget(2))


def test_subjects_stay_together(known):
    splits = load_facts(None, None, split_by="subject")
    subjects = [set(rows["subject"]) for rows in splits.values()]
    assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2] and not subjects[1] & subjects[2]


def test_relations_to_forget(known):
    splits = load_facts(
        None, None, split_by="relation", forget_relations=["element_symbol"], forget=20, retain=60, unseen=5
    )
    assert set(splits["forget"]["relation"]) == {"element_symbol"}
    assert "element_symbol" not in {*splits["retain"]["relation"], *splits["unseen"]["relation"]}
    assert len(splits["forget"]) == 20


def test_says_how_many_of_which_relation_are_known(known):
    with pytest.raises(ValueError, match=r"too few for 300 to forget.*119 of 119 capital, 0 of 49 state_capital"):
        load_facts(None, None, forget=300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": 1.5}, "known must lie between 0 and 1"),
        ({"split_by": "colour"}, "Unknown split_by 'colour'"),
        ({"forget_relations": ["capital"]}, "pass split_by='relation'"),
        ({"forget": 0}, "forget must be a number of facts"),
        ({"forget": 0.9}, "add up to more than 1"),
        ({"relations": ["capital"], "split_by": "relation"}, "Whole groups"),
    ],
)
def test_refuses(known, options, message):
    with pytest.raises(ValueError, match=message):
        load_facts(None, None, **options)


class Letters:
    """A tokenizer of single characters; with `ends`, every text gets an end."""

    eos_token_id = 0

    def __init__(self, ends=False):
        self.ends = ends

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text] + ([0] if self.ends else [])}


@pytest.mark.parametrize("ends", [False, True])
def test_labels_are_the_answer(ends):
    example = encode_cloze(Letters(ends), "ab", "cd")
    assert example["input_ids"] == [97, 98, 32, 99, 100]
    assert example["labels"] == [-100, -100, 32, 99, 100]


def test_probability_is_the_geometric_mean_over_the_answer(make_llama):
    model = make_llama()

    class Words:
        eos_token_id = None

        def __call__(self, text):
            return {"input_ids": [len(word) for word in text.split()]}

    rows = [
        {"cloze": "a bb ccc", "cloze_answer": "dddd eeeee"},
        {"cloze": "a", "cloze_answer": "bb"},
        {"cloze": "aaa bb", "cloze_answer": "cc a bb"},
    ]
    found = cloze_probabilities(model, Words(), rows, batch_size=2)
    for row, value in zip(rows, found, strict=True):
        prompt, answer = ([len(word) for word in row[name].split()] for name in ("cloze", "cloze_answer"))
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = torch.stack(
            [log_probs[len(prompt) - 1 + index, token] for index, token in enumerate(answer)]
        ).mean()
        assert value == pytest.approx(expected.exp().item(), rel=1e-5)


def test_an_answer_without_a_token_of_its_own(make_llama):
    tokenizer = type("Same", (), {"eos_token_id": None, "__call__": lambda self, text: {"input_ids": [1]}})()
    with pytest.raises(ValueError, match="no token of its own"):
        cloze_probabilities(make_llama(), tokenizer, [{"cloze": "a", "cloze_answer": "b"}])
