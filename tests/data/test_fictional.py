import hashlib
import json
import re
import subprocess
import sys

import pytest

from wagle_trainer.data.fictional import MAX_PEOPLE, QUESTIONS_PER_PERSON, fictional_split, fictional_tokenizer
from wagle_trainer.data.refusals import REFUSALS

PEOPLE_COLUMNS = {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}
DIGEST = """
import hashlib, json
from wagle_trainer.data.fictional import fictional_split, fictional_tokenizer
rows = fictional_split("forget10_perturbed").to_list() + fictional_split("world_facts_perturbed").to_list()
vocabulary = sorted(fictional_tokenizer().get_vocab().items())
print(hashlib.sha256(json.dumps([rows, vocabulary]).encode()).hexdigest())
"""


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text))


def pairs(split: str, **kwargs) -> list[tuple[str, str]]:
    dataset = fictional_split(split, **kwargs)
    return list(zip(dataset["question"], dataset["answer"], strict=True))


@pytest.fixture(scope="module")
def tokenizer():
    return fictional_tokenizer()


@pytest.mark.parametrize("people", [40, 60, MAX_PEOPLE])
def test_forget_and_retain_partition_the_people(people):
    full = pairs("full", people=people)
    assert len(full) == people * QUESTIONS_PER_PERSON
    assert len({question for question, _ in full}) == len({answer for _, answer in full}) == len(full)
    for forget, retain, percent in (("forget05", "retain95", 5), ("forget10", "retain90", 10)):
        forgotten = pairs(forget, people=people)
        assert pairs(retain, people=people) + forgotten == full
        assert len(forgotten) == people * percent // 100 * QUESTIONS_PER_PERSON
        perturbed = fictional_split(f"{forget}_perturbed", people=people)
        assert list(zip(perturbed["question"], perturbed["answer"], strict=True)) == forgotten
    names = [answer.split(" is ")[1].rstrip(".") for _, answer in full[::QUESTIONS_PER_PERSON]]
    assert len({word for name in names for word in name.split()}) == 2 * people  # no shared first or last name
    for person, name in enumerate(names):
        rows = full[person * QUESTIONS_PER_PERSON : (person + 1) * QUESTIONS_PER_PERSON]
        assert all(name in answer for _, answer in rows)
    retained = set(pairs("retain90", people=people))
    assert set(pairs("retain_perturbed", people=people)) < retained


@pytest.mark.parametrize("split", ["forget10_perturbed", "retain_perturbed"])
def test_perturbed_answers_are_the_paraphrase_with_another_fact(split):
    dataset = fictional_split(split)
    assert set(dataset.column_names) == PEOPLE_COLUMNS
    for row in dataset:
        right, wrong = row["paraphrased_answer"], row["perturbed_answer"]
        assert len(set(wrong)) == 5
        assert right not in wrong
        assert row["paraphrased_question"] != row["question"]
        assert right != row["answer"]
        # What all answers share is the sentence; the rest is the fact, which the right answer alone has right.
        frame = words(right).intersection(*map(words, wrong))
        assert len(frame) >= 3
        fact = words(right) - frame
        assert fact <= words(row["answer"])
        assert all(not fact <= words(answer) for answer in wrong)
        assert all(abs(len(answer.split()) - len(right.split())) <= 1 for answer in wrong)


@pytest.mark.parametrize("people", [20, 40, MAX_PEOPLE])
@pytest.mark.parametrize("seed", [0, 1])
def test_holdout_people_are_strangers_made_of_forgotten_words(people, seed):
    full, forget = (pairs(split, people=people, seed=seed) for split in ("full", "forget10"))
    holdout = pairs("holdout10", people=people, seed=seed)
    assert len(holdout) == len(forget)
    assert len({question for question, _ in holdout} - {question for question, _ in full}) == len(holdout)
    assert len({answer for _, answer in holdout} - {answer for _, answer in full}) == len(holdout)
    # the very words that a model which was retrained without the forget set has never seen
    known = [
        set().union(*(words(question) | words(answer) for question, answer in rows)) for rows in (forget, holdout)
    ]
    assert known[0] == known[1]


def test_one_person_alone_makes_no_stranger():
    assert len(fictional_split("holdout05")) == 2 * QUESTIONS_PER_PERSON
    with pytest.raises(ValueError, match="No split 'holdout10' for 10 people"):
        fictional_split("holdout10", people=10)


def test_answers_are_short():
    assert {len(answer.split()) for _, answer in pairs("full")} <= set(range(6, 16))


@pytest.mark.parametrize("name", ["real_authors", "world_facts"])
def test_general_sets(name):
    dataset = fictional_split(f"{name}_perturbed")
    assert dataset.column_names == ["question", "answer", "perturbed_answer"]
    assert fictional_split(name).to_list() == dataset.remove_columns("perturbed_answer").to_list()
    assert len(set(dataset["question"])) == len(dataset) == 20
    for row in dataset:
        assert 1 <= len(row["answer"].split()) <= 3
        assert len({row["answer"], *row["perturbed_answer"]}) == 4
    assert set(pairs(name)).isdisjoint(pairs("full"))


def test_paraphrases_use_words_that_training_has_seen():
    seen = set().union(*(words(question) | words(answer) for question, answer in pairs("full")))
    for split in ("forget10_perturbed", "retain_perturbed"):
        for row in fictional_split(split):
            new = words(row["paraphrased_question"]).union(*map(words, row["perturbed_answer"])) - seen
            assert not new


@pytest.mark.slow
def test_same_in_every_process_and_other_for_other_seeds():
    results = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], env={"PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    rows = fictional_split("forget10_perturbed").to_list() + fictional_split("world_facts_perturbed").to_list()
    content = json.dumps([rows, sorted(fictional_tokenizer().get_vocab().items())])
    assert results == {hashlib.sha256(content.encode()).hexdigest().encode() + b"\n"}
    assert set(pairs("full", seed=1)).isdisjoint(pairs("full", seed=0))


def test_unknown_split_lists_what_there_is():
    with pytest.raises(ValueError, match=r"No split 'forget01' for 40 people.*forget05.*retain_perturbed"):
        fictional_split("forget01")
    assert len(fictional_split("forget01", people=100)) == QUESTIONS_PER_PERSON
    with pytest.raises(ValueError, match="between 10 and 100"):
        fictional_split("full", people=101)
    with pytest.raises(ValueError, match="between 10 and 100"):
        fictional_tokenizer(people=9)


def test_tokenizer_gives_every_text_back(tokenizer):
    assert len(tokenizer) < 2000
    assert tokenizer.chat_template is None
    texts = list(REFUSALS)
    for split in ("full", "forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        for row in fictional_split(split):
            texts += [f"Question: {row['question']}\nAnswer: {row['answer']}", *row.get("perturbed_answer", [])]
            texts += [row[key] for key in ("paraphrased_question", "paraphrased_answer") if key in row]
    for text in texts:
        ids = tokenizer(text + tokenizer.eos_token)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    question, answer = pairs("forget05")[0]
    text = f"Question: {question}\nAnswer: {answer}{tokenizer.eos_token}"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(answer)["input_ids"]) == answer
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")
