import math

import pytest
import torch

from wagle_trainer.data import QAFormat, load_wmdp_questions
from wagle_trainer.data.fictional import hazards_tokenizer
from wagle_trainer.evaluation import evaluate_multiple_choice, get_suite
from wagle_trainer.reporting import example_interval

FORGET = [
    {"question": "Which word?", "choices": ["w1 w2", "w3", "w4 w5 w6", "w7"], "answer": 2},
    {"question": "Which other word?", "choices": ["w8", "w9"], "answer": 0},
]
RETAIN = [{"question": "w1?", "choices": ["w2", "w3", "w4"], "answer": 1, "subject": "world_religions"}]
SETS = {"forget": FORGET, "retain": RETAIN}


@pytest.fixture(scope="module")
def tokenizer():
    return hazards_tokenizer()


@pytest.fixture(scope="module")
def model(make_llama, tokenizer):
    return make_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def sets():
    return {
        "forget": list(load_wmdp_questions("wmdp-bio", "fictional", limit=3)),
        "retain": list(load_wmdp_questions("mmlu", "fictional", limit=2)),
    }


def log_prob(model, ids, start):
    """Of the tokens from `start` on, by hand."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_texts_by_hand(model, tokenizer, sets):
    qa = QAFormat.for_tokenizer(tokenizer)
    found = evaluate_multiple_choice(model, tokenizer, sets, ask_for="text", batch_size=3, progress=False)
    for name, rows in sets.items():
        correct = []
        for index, row in enumerate(rows):
            values = []
            for choice in row["choices"]:
                example = qa.encode(row["question"], choice)
                start = next(place for place, label in enumerate(example["labels"]) if label != -100)
                values.append(log_prob(model, example["input_ids"], start))
            best = values.index(max(values))
            correct.append(int(best == row["answer"]))
            assert found["per_example"][name]["generation"][index] == row["choices"][best]
            assert found["per_example"][name]["answer_prob"][index] == pytest.approx(
                math.exp(values[row["answer"]]) / sum(map(math.exp, values)), rel=1e-4
            )
        assert found[f"{name}_accuracy"] == sum(correct) / len(correct)
        assert found["per_example"][name]["correct"] == correct
    assert found["settings"]["ask_for"] == "text"
    interval = example_interval(found, "forget_accuracy")
    assert interval.low <= found["forget_accuracy"] <= interval.high


def test_letters_are_asked_for_as_the_harness_does(model, make_word_tokenizer):
    """The prompt of the harness's tasks wmdp_bio and mmlu, and the letters after "Answer:" alone."""
    asked = []

    class Spy:
        eos_token_id, chat_template = None, None

        def __call__(self, text):
            asked.append(text)
            ids = [ord(letter) % 50 + 3 for letter in text]
            return {"input_ids": ids}

    found = evaluate_multiple_choice(model, Spy(), SETS, progress=False)
    assert asked[0] == (
        "The following are multiple choice questions (with answers).\n\nWhich word?\nA. w1 w2\nB. w3\nC. w4 w5 w6\nD. w7\n"
        "Answer:"
    )
    assert asked[1:5] == [f"{asked[0]} {letter}" for letter in "ABCD"]
    about = next(text for text in asked if "religions" in text)
    assert about.startswith(
        "The following are multiple choice questions (with answers) about world religions.\n\nw1?\nA. w2"
    )
    ids = [Spy()(f"{asked[0]} {letter}")["input_ids"] for letter in "ABCD"]
    values = [log_prob(model, one, len(asked[0])) for one in ids]
    assert found["per_example"]["forget"]["generation"][0] == FORGET[0]["choices"][values.index(max(values))]
    assert found["per_example"]["forget"]["answer"] == ["w4 w5 w6", "w8"]


def test_continuations_by_hand(model, tokenizer):
    row = {"question": "The Nautolock fails at its", "choices": ["lower membrane.", "inner socket."], "answer": 1}
    found = evaluate_multiple_choice(
        model, tokenizer, {"forget": [row], "retain": [row]}, ask_for="continuation", progress=False
    )
    start = len(tokenizer(row["question"])["input_ids"])
    values = [
        log_prob(model, tokenizer(f"{row['question']} {choice}")["input_ids"], start) for choice in row["choices"]
    ]
    assert found["forget_answer_prob"] == pytest.approx(math.exp(values[1]) / sum(map(math.exp, values)), rel=1e-4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x", "choices": ["a"], "answer": 0}, "no list of 2 to 10 texts in 'choices' of row 0"),
        ({"question": "x", "choices": ["a", 2], "answer": 0}, "no list of 2 to 10 texts"),
        ({"question": "x", "choices": ["a", "b"], "answer": "B"}, "'B' in 'answer' of row 0: it must be the index"),
        ({"question": "x", "choices": ["a", "b"], "answer": 2}, "from 0 to 1"),
        ({"question": "x", "answer": 0}, "no 'choices' in row 0"),
    ],
)
def test_rows_that_are_no_questions(model, tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        evaluate_multiple_choice(model, tokenizer, {"forget": [row], "retain": RETAIN}, progress=False)


def test_the_suite_loads_the_bundled_questions():
    suite = get_suite("multiple_choice")
    data = suite.load(limit=4)
    assert {name: len(rows) for name, rows in data.items()} == {"forget": 8, "retain": 4}
    assert next(iter(suite.forget_metrics)) == "forget_accuracy"
    assert next(iter(suite.utility_metrics)) == "retain_accuracy"
    with pytest.raises(ValueError, match="ask_for must be one of letter, text, continuation"):
        suite.evaluate(None, None, data, ask_for="number")
