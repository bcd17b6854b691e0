"""Sets and tokenizers that cannot be worked with are refused, and the row is named."""

import warnings

import pytest
from datasets import Dataset, load_dataset

from wagle_trainer.data.dataset_checks import check_chat_template, check_eos_token, check_set

FORMS = ["text", "messages", "prompt_completion", "conversational", "tokenized"]
USER, ASSISTANT = [{"role": "user", "content": "w1"}], [{"role": "assistant", "content": "w2"}]


@pytest.mark.parametrize("form", [*FORMS, "preference", "conversational_preference"])
def test_known_formats_pass(form, make_set, chat_tokenizer):
    check_set(make_set(2, form), "forget")
    check_chat_template(make_set(2, form), "forget", chat_tokenizer)


def test_own_text_column_and_formatting_function_pass(make_set):
    own = Dataset.from_dict({"question": ["w1"]})
    check_set(own, "forget", text_field="question")
    check_set(own, "forget", formatting_func=lambda row: row["question"])
    with pytest.raises(ValueError, match="columns question"):
        check_set(own, "forget")


@pytest.mark.parametrize("form", ["messages", "conversational", "conversational_preference"])
def test_no_chat_template(form, make_set, word_tokenizer):
    with pytest.raises(ValueError, match=r"retain set is conversational.*no chat template.*tokenizer\.chat_template"):
        check_chat_template(make_set(2, form), "retain", word_tokenizer)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ({"text": "w1"}, {"text": None}, "holds nothing in the column 'text', not text as row 0"),
        ({"text": 1}, {"text": 2}, "Row 0 .* holds a value of type int in the column 'text', not text"),
        ({"prompt": "w1", "completion": "w2"}, {"prompt": "w1"}, "Row 1 .* nothing in the column 'completion'"),
        (
            {"prompt": USER, "completion": "w2"},
            {},
            "Row 0 .* text in .* 'completion', not messages as row 0 in 'prompt'",
        ),
        ({"messages": USER + ASSISTANT}, {"messages": None}, "Row 1 .* holds nothing in the column 'messages'"),
        ({"messages": USER + ASSISTANT}, {"messages": []}, "Row 1 .* holds an empty list in the column 'messages'"),
        ({"messages": [{"text": "w1"}]}, {}, "Row 0 .* a list of values that are no messages with role"),
        ({"conversations": USER}, {}, "Row 0 .* a list of values that are no messages with from and value"),
        ({"prompt": "w1", "chosen": "w2", "rejected": "w3"}, {"chosen": "w2", "rejected": "w3"}, "Row 1 .*'prompt'"),
        ({"prompt": "w1", "chosen": "w2", "rejected": "w3"}, {"prompt": "w1", "chosen": "w2"}, "Row 1 .*'rejected'"),
        ({"input_ids": [5, 6]}, {"input_ids": None}, "Row 1 .* does not hold lists .* in input_ids"),
        (
            {"input_ids": [5, 6], "labels": [5, 6]},
            {"input_ids": [5, 6], "labels": [6]},
            "Row 1 .* lists of the same length in input_ids, labels",
        ),
    ],
)
def test_rows_that_do_not_keep_to_the_format_are_named(good, bad, message):
    """TRL ends in a bare AttributeError, KeyError or TypeError at these, or takes the wrong labels."""
    with pytest.raises(ValueError, match=message):
        check_set(Dataset.from_list([good, bad or good]), "forget")


def test_text_and_messages_in_one_file(tmp_path):
    (tmp_path / "mixed.jsonl").write_text(
        '{"prompt": "w1", "completion": "w2"}\n'
        '{"prompt": [{"role": "user", "content": "w1"}], "completion": [{"role": "assistant", "content": "w2"}]}\n'
    )
    mixed = load_dataset("json", data_files=str(tmp_path / "mixed.jsonl"), split="train")
    with pytest.raises(ValueError, match="Row 1 .* holds messages in the column 'prompt', not text"):
        check_set(mixed, "forget")


@pytest.mark.parametrize("form", [*FORMS, "preference", "conversational_preference"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_sets_in_another_output_format_pass(kind, form, make_set, chat_tokenizer):
    check_set(make_set(2, form).with_format(kind), "forget")
    check_chat_template(make_set(2, form).with_format(kind), "forget", chat_tokenizer)


@pytest.mark.parametrize(
    "rows",
    [
        {"prompt": ["w1", "w1"], "completion": ["w2", " "]},
        {"messages": [USER + ASSISTANT, [*USER, {"role": "assistant", "content": ""}]]},
        {"prompt": ["w1", ""], "chosen": ["w2", "w2"], "rejected": ["w3", ""]},
    ],
)
def test_empty_answers_are_counted(rows):
    with pytest.warns(UserWarning, match=r"1 of 2 examples of the forget set have an empty answer .*\(rows 1\)"):
        check_set(Dataset.from_dict(rows), "forget")


def test_nothing_is_said_of_a_good_set(make_set):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in [*FORMS, "preference", "conversational_preference"]:
            check_set(make_set(3, form), "forget")


def test_conversation_in_other_words_needs_a_chat_template(word_tokenizer):
    turns = [{"from": "user", "value": "w1"}, {"from": "assistant", "value": "w2"}]
    with pytest.raises(ValueError, match="forget set is conversational"):
        check_chat_template(Dataset.from_list([{"conversations": turns}]), "forget", word_tokenizer)


ALTERNATE = "{% if messages[0].role == 'system' or messages[1].role != 'assistant' %}{{ raise_exception('alternate') }}{% endif %}"


@pytest.mark.parametrize(
    ("rows", "template", "message"),
    [
        (
            [{"messages": USER + ASSISTANT}, {"messages": [*USER, *USER, *ASSISTANT]}],
            ALTERNATE,
            "Row 1 .*: alternate. Fix",
        ),
        (
            [{"conversations": [{"from": "system", "value": "w1"}, {"from": "gpt", "value": "w2"}]}],
            ALTERNATE,
            "Row 0 ",
        ),
        ([{"prompt": [{"role": "system", "content": "w1"}, *USER], "completion": ASSISTANT}], ALTERNATE, "Row 0 "),
        (
            [{"prompt": USER, "chosen": ASSISTANT, "rejected": USER}],
            "{{ messages[1].content.x.y }}",
            "Row 0 .*no element 1",
        ),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "text", "text": "w1"}]},
                        {"role": "assistant", "content": []},
                    ]
                }
            ],
            "{{ messages[0].content }}",
            "Row 0 .*prints the parts of a content as Python does",
        ),
    ],
)
def test_a_row_that_a_template_refuses_is_named(rows, template, message, word_tokenizer):
    word_tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message) as error:
        check_chat_template(Dataset.from_list(rows), "forget", word_tokenizer)
    assert "of the forget set cannot be written with this template" in str(error.value)


def test_an_attention_mask_of_another_length_is_refused():
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1]}, {"input_ids": [5, 6], "attention_mask": [1]}]
    with pytest.raises(ValueError, match="Row 1 of the forget set does not hold lists of the same length"):
        check_set(Dataset.from_list(rows), "forget")


def test_speakers_are_written_as_trl_writes_them(word_tokenizer):
    """TRL renames the keys of ShareGPT, not its speakers: a template that refuses them is told of before training."""
    rows = [{"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]}]
    with pytest.warns(UserWarning, match="The forget set has the speakers gpt, human, which TRL writes into"):
        check_set(Dataset.from_list(rows), "forget")
    word_tokenizer.chat_template = "{% if messages[0].role != 'user' %}{{ raise_exception('no user') }}{% endif %}"
    with pytest.raises(ValueError, match="Row 0 of the forget set cannot be written with this template: no user"):
        check_chat_template(Dataset.from_list(rows), "forget", word_tokenizer)


def test_a_conversation_without_the_assistant_is_named():
    with pytest.raises(ValueError, match="Row 1 of the forget set has no turn of the assistant .* speakers are user"):
        check_set(Dataset.from_list([{"messages": USER + ASSISTANT}, {"messages": USER}]), "forget")


def test_a_call_of_a_tool_is_no_empty_answer():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_set(Dataset.from_list([{"messages": [*USER, call]}]), "forget")


@pytest.mark.parametrize("form", ["text", "prompt_completion", "preference"])
def test_texts_need_an_end(form, make_set, chat_tokenizer):
    check_eos_token(make_set(2, form), "forget", chat_tokenizer)
    chat_tokenizer.eos_token = None
    with pytest.raises(
        ValueError, match="texts of the forget set end with .* end-of-sequence token.*set tokenizer.eos"
    ):
        check_eos_token(make_set(2, form), "forget", chat_tokenizer)
    check_eos_token(make_set(2, "tokenized"), "forget", chat_tokenizer)
    check_eos_token(make_set(2, "messages"), "forget", chat_tokenizer)
