"""Bundled public facts: what the rows hold, what counts as known, and how the splits come about."""

import hashlib
import random
from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    entries = [entry for entry in RELATIONS[name].pairs.split(";") if entry.strip()]
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


@pytest.mark.parametrize("name", list(RELATIONS))
def test_other_right_answers_are_of_the_table(name):
    """A name with a slip would leave a right answer among the wrong ones."""
    relation = RELATIONS[name]
    facts = relation.facts()
    objects = set(facts.values())
    keys = [entry.split(": ")[0].strip() for entry in relation.also_right.split(";") if entry.strip()]
    assert len(keys) == len(set(keys)) and set(keys) <= {*facts, *objects}
    for subject in facts:
        right, wrong = relation.right_answers(subject), relation.wrong_answers(subject)
        assert facts[subject] in right <= objects
        assert len(wrong) == len(set(wrong)) and set(wrong) == objects - right


@pytest.mark.parametrize(
    ("relation", "subject", "right"),
    [
        ("landmark", "The Forbidden City", {"Beijing", "China"}),
        ("landmark", "The Space Needle", {"Seattle", "Washington"}),
        ("landmark", "The Great Wall", {"China"}),  # which has other places than Beijing
        ("animal_young", "fox", {"kit", "cub", "pup"}),
        ("river_mouth", "Ganges", {"Bay of Bengal", "Indian Ocean"}),
        ("capital", "France", {"Paris"}),
    ],
)
def test_right_answers_are_no_wrong_ones(relation, subject, right):
    assert RELATIONS[relation].right_answers(subject) == right
    row = next(row for row in ROWS if (row["relation"], row["subject"]) == (relation, subject))
    sentences = {RELATIONS[relation].paraphrased_answer.format(subject=subject, object=other) for other in right}
    assert not {text.casefold() for text in sentences} & {text.casefold() for text in row["perturbed_answer"]}


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


def test_a_forget_relation_comes_first():
    """Paris is the answer to landmarks, and to a capital, which is in no split then."""
    relations = ["landmark", "landmark"]
    options = {"split_by": "relation", "forget_relations": relations}
    splits = load_known(lambda index: True, forget=200, retain=60, unseen=60, **options)
    forget = splits["forget"]
    assert sorted(forget["subject"]) == sorted(RELATIONS["landmark"].facts())
    assert "Paris" in forget["cloze_answer"]
    assert not set(forget["cloze_answer"]) & {*splits["retain"]["cloze_answer"], *splits["unseen"]["cloze_answer"]}


def test_a_forget_relation_that_the_model_does_not_know_is_refused():
    """Other facts do not take its place."""
    authors = {index for index, row in enumerate(all_facts()) if row["relation"] == "author"}
    with pytest.raises(ValueError, match="0 of .* author"):
        load_known(lambda index: index not in authors, split_by="relation", forget_relations=["author"])


def load_known(is_known, **options):
    """`load_facts` with a model that knows the rows for which `is_known(index)` is true."""

    def probabilities(model, tokenizer, rows, **_):
        return [0.9 * bool(is_known(index)) for index in range(len(rows))]

    with mock.patch.object(facts_module, "cloze_probabilities", probabilities):
        return load_facts(None, None, **options)


@settings(max_examples=20, deadline=None)
@given(
    split_by=st.sampled_from(["random", "subject", "relation"]),
    sizes=st.sampled_from([(0.25, 0.5, 0.25), (0.1, 0.3, 0.2), (12, 24, 24), (1, 5, 2)]),
    step=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_no_answer_is_in_two_splits(split_by, sizes, step, seed):
    options = dict(zip(("forget", "retain", "unseen"), sizes, strict=True))
    splits = load_known(lambda index: index % step == 0, split_by=split_by, seed=seed, **options)
    answers = [{answer.casefold() for answer in rows["cloze_answer"]} for rows in splits.values()]
    assert sum(map(len, answers)) == len(set.union(*answers))
    clozes = [cloze for rows in splits.values() for cloze in rows["cloze"]]
    assert len(set(clozes)) == len(clozes)
    known = len(range(0, len(ROWS), step))
    largest = [size if isinstance(size, int) else int(size * known + 1e-9) for size in sizes]
    lengths = [len(rows) for rows in splits.values()]
    assert all(0 < length <= most for length, most in zip(lengths, largest, strict=True))
    if split_by == "random":
        assert lengths == largest  # single facts fill up what whole groups leave


def split_one_by_one(found, sizes, seed):
    """Single facts in random order, each to the split that lacks the largest part of its size."""
    order, rng = list(found), random.Random(f"facts {seed}")
    for i in range(len(order)):
        j = i + int(rng.random() * (len(order) - i))
        order[i], order[j] = order[j], order[i]
    splits = {name: [] for name in sizes}
    for fact in order:
        if open_ := [name for name in sizes if len(splits[name]) < sizes[name]]:
            splits[min(open_, key=lambda name: len(splits[name]) / sizes[name])].append(fact)
    return splits


@settings(max_examples=20, deadline=None)
@given(
    relations=st.sampled_from([["capital"], ["state_capital"], ["element_symbol", "capital", "element_number"]]),
    sizes=st.tuples(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16)),
    seed=st.integers(0, 1000),
)
def test_facts_with_different_answers_are_split_one_by_one(relations, sizes, seed):
    wanted = dict(zip(("forget", "retain", "unseen"), sizes, strict=True))
    splits = load_known(lambda index: True, relations=relations, seed=seed, **wanted)
    expected = split_one_by_one(all_facts(relations)["cloze"], wanted, seed)
    assert {name: rows["cloze"] for name, rows in splits.items()} == expected


@pytest.mark.parametrize(
    ("seed", "forget", "retain", "digest"),
    [
        (0, 12, 24, "6600abe84ca57515"),
        (0, 16, 20, "b580f6bc0e1961c5"),
        (1, 12, 24, "b0cf77954399b137"),
        (2, 12, 24, "58f7683b92e94d1d"),
        (3, 12, 24, "841435c893ada4f6"),
        (4, 12, 24, "5e3cac7132fd4dcd"),
    ],
)
def test_capitals_are_split_as_in_the_published_study(seed, forget, retain, digest):
    """Every second capital counts as known. The rows in benchmarks/results/patch_size rest on these splits."""
    splits = load_known(
        lambda index: index % 2, relations=["capital"], forget=forget, retain=retain, unseen=23, seed=seed
    )
    text = "; ".join(",".join(splits[name]["subject"]) for name in ("forget", "retain", "unseen"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_all_of_a_shared_answer_are_in_one_split():
    """Where all known facts are requested, no group is cut."""
    splits = load_known(lambda index: True)
    assert [len(rows) for rows in splits.values()] == [205, 411, 205]
    parts = [Counter(rows["cloze_answer"]) for rows in splits.values()]
    for answer, number in Counter(row["cloze_answer"] for row in ROWS).items():
        inside = [part[answer] for part in parts]
        assert sorted(inside) in ([0, 0, number], [0, 0, number - 1])  # 822 is not divisible by four


def test_sizes_that_groups_cannot_meet():
    with pytest.raises(ValueError, match=r"45 known facts have 6 different answers: they fill retain with 24 of 25"):
        load_known(lambda index: True, relations=["continent"], forget=10, retain=25, unseen=10)
    with pytest.raises(ValueError, match="10 known facts have 1 different answers: they fill"):
        load_known(lambda index: index < 10, relations=["continent"])


def test_says_how_many_of_which_relation_are_known(known):
    with pytest.raises(ValueError, match=r"too few for 300 to forget.*119 of 119 capital, 0 of 49 state_capital"):
        load_facts(None, None, forget=300)


def test_names_requested_shares_where_nothing_is_known():
    message = (
        r"0 of 119 facts.*a share of 0.25 to forget, 24 to retain, a share of 0.25 unseen \(at least one fact each\)"
    )
    with pytest.raises(ValueError, match=message):
        load_known(lambda index: False, relations=["capital"], retain=24)


BY_RELATION = {"split_by": "relation"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": 1.5}, "known must lie between 0 and 1"),
        ({"split_by": "colour"}, "Unknown split_by 'colour'"),
        ({"relations": []}, "relations is empty. Name one or more of capital"),
        ({"relations": ["capital", "colour"]}, "Unknown relation colour in relations"),
        ({"relations": "capital"}, r"pass relations=\['capital'\]"),
        ({"forget_relations": ["capital"]}, "pass split_by='relation'"),
        (BY_RELATION | {"forget_relations": "capital"}, r"pass forget_relations=\['capital'\]"),
        (BY_RELATION | {"forget_relations": []}, "forget_relations is empty"),
        (BY_RELATION | {"forget_relations": ["nope"]}, "Unknown relation nope in forget_relations"),
        (
            BY_RELATION | {"relations": ["capital", "currency", "language"], "forget_relations": ["author"]},
            "forget_relations has author, which relations lacks. It has capital, currency, language",
        ),
        (
            BY_RELATION | {"relations": ["capital", "currency"], "forget_relations": ["capital"]},
            "has 1 of 2 relations. The retain and the unseen set need one relation each",
        ),
        (BY_RELATION | {"relations": ["capital", "currency"]}, "needs three relations or more, one for each split"),
        ({"forget": 0}, "forget must be a number of facts"),
        ({"forget": True}, "forget must be a number of facts"),
        ({"forget": "12"}, "forget must be a number of facts"),
        ({"retain": float("nan")}, "retain must be a number of facts"),
        ({"forget": 0.9}, "add up to more than 1"),
        ({"forget": 800, "unseen": 23}, "800 to forget, 23 unseen are more than the 822 facts"),
    ],
)
def test_refuses_before_the_model_runs(known, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load_facts(None, None, **options)
    assert not known


def test_refuses_relations_of_which_one_is_known(known):
    with pytest.raises(ValueError, match="Whole groups"):
        load_facts(None, None, relations=["capital", "currency", "language"], split_by="relation")


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
