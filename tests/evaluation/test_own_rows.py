"""Rows of one's own are measured on the tokens that they are trained on."""

import json

import pytest
from datasets import Dataset

from wagle_trainer.data import QAFormat, read_examples
from wagle_trainer.data.preparation import DatasetPreparation
from wagle_trainer.evaluation.own_rows import as_questions, encode_row, measured_rows

TEMPLATE = (
    "{% if tools %}w40 {% endif %}{{ note or 'w41' }} {% for message in messages %}"
    "{{ 'w43' if message['role'] == 'assistant' else 'w42' }} {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %} {% endfor %}{% if add_generation_prompt %}w43 {% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def turns(*texts):
    """Of user and assistant, in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def tokenizer(word_tokenizer):
    word_tokenizer.chat_template = TEMPLATE
    return word_tokenizer


def trained(tokenizer, rows):
    return DatasetPreparation(tokenizer, max_length=None)(rows, "forget").to_list()


FORMATS = pytest.mark.parametrize("options", [{}, {"chat_template_kwargs": {"note": "w9"}}, {"style": "plain"}])


@FORMATS
def test_conversations_of_a_file(options, tokenizer, tmp_path):
    rows = [
        {"messages": turns("w1", "w2 w3", "w4", "w5 w6"), "tools": TOOLS},
        {"messages": turns("w1 w7", "w8", "w0"), "tools": TOOLS},  # the user has the last word
    ]
    (tmp_path / "f.json").write_text(json.dumps(rows))
    examples = read_examples(tmp_path / "f.json")
    assert "1 of 2 conversations have several answers: the last one is trained on" in examples.report()
    qa = QAFormat.for_tokenizer(tokenizer, **options)
    measured = [encode_row(qa, row, "row") for row in measured_rows(examples, "forget")]
    assert trained(tokenizer, examples.training_set(qa)) == [row.encoded for row in measured]
    for row, answer in zip(measured, ("w5 w6 <eos>", "w8 <eos>"), strict=True):
        labels = [label for label in row.encoded["labels"] if label != -100]
        assert tokenizer.decode(labels) == answer
        assert row.prompt == row.encoded["input_ids"][: -len(labels)]
    if options.get("style") != "plain":
        assert tokenizer.decode(measured[1].prompt) == f"w40 {'w9' if options else 'w41'} w42 w1 w7 w43"


@FORMATS
def test_prompts_and_completions_of_messages_of_a_file(options, tokenizer, tmp_path):
    conversation = turns("w1", "w2 w3", "w4", "w5 w6")
    (tmp_path / "f.json").write_text(json.dumps([{"prompt": conversation[:3], "completion": conversation[3:]}]))
    examples, qa = read_examples(tmp_path / "f.json"), QAFormat.for_tokenizer(tokenizer, **options)
    measured = [encode_row(qa, row, "row") for row in measured_rows(examples, "forget")]
    assert trained(tokenizer, examples.training_set(qa)) == [row.encoded for row in measured]


def test_rows_in_formats_of_trl(tokenizer):
    """With tools, variables of their own, and a completion of several turns, whose last one is measured."""
    conversation = turns("w1", "w2", "w3", "w4 w5")
    rows = [
        {"prompt": conversation[:3], "completion": conversation[3:], "tools": TOOLS, "chat_template_kwargs": {"note": "w9"}},
        {"prompt": conversation[:1], "completion": conversation[1:], "tools": TOOLS, "chat_template_kwargs": {"note": "w9"}},
    ]  # fmt: skip
    qa = QAFormat.for_tokenizer(tokenizer)
    one, other = (encode_row(qa, row, "row") for row in rows)
    assert one == other
    assert [one.encoded] == trained(tokenizer, Dataset.from_list(rows[:1]))


def test_questions_of_a_completion_of_several_turns(tmp_path):
    conversation = turns("w1", "w2", "w3", "w4 w5")
    (tmp_path / "f.json").write_text(json.dumps([{"prompt": conversation[:1], "completion": conversation[1:]}]))
    [row] = as_questions(read_examples(tmp_path / "f.json"), "forget")
    assert row == {"question": "w1\nw2\nw3", "answer": "w4 w5"}
