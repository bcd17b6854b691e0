"""Our preparation is TRL's, without its trainer. If a test here fails after an update of TRL, then
`SFTTrainer._prepare_dataset` reads or gives something new: change wagle_trainer/data/preparation.py."""

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from wagle_trainer.data.checks import check_chat_template, check_set
from wagle_trainer.data.preparation import (
    DatasetPreparation,
    as_prompt_completion,
    is_preference,
    prepare,
    with_refusals,
)

FORMS = ["text", "messages", "prompt_completion", "conversational", "tokenized"]


@pytest.fixture
def trl_trainer(make_llama, chat_tokenizer, tmp_path):
    def make(dataset, **changes):
        settings = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        return SFTTrainer(
            make_llama(),
            SFTConfig(str(tmp_path), **(settings | changes)),
            train_dataset=dataset,
            processing_class=chat_tokenizer,
        )

    return make


def columns(dataset):
    return {name: list(dataset[name]) for name in ("input_ids", "labels")}


@pytest.mark.parametrize("max_length", [None, 1024, 8])
@pytest.mark.parametrize("form", FORMS)
def test_same_tokens_and_labels_as_trl(form, max_length, make_set, trl_trainer, chat_tokenizer):
    # With 8 tokens some answers are truncated; prompts of 2 to 5 words leave something of each.
    dataset = make_set(30, form)
    if max_length == 8:
        lengths = [
            next(i for i, x in enumerate(row) if x != -100) for row in _whole(dataset, chat_tokenizer)["labels"]
        ]
        dataset = dataset.select([row for row, length in enumerate(lengths) if length < 8])
    ours = DatasetPreparation(chat_tokenizer, max_length=max_length)(dataset, "forget")
    theirs = trl_trainer(dataset, max_length=max_length).train_dataset
    assert columns(ours) == columns(theirs)
    assert len(ours) == len(dataset) > 10
    assert any(len(ids) == 8 for ids in ours["input_ids"])
    prompts_masked = any(row[0] == -100 for row in ours["labels"])
    assert prompts_masked == (form not in ("text", "messages"))


def _whole(dataset, tokenizer):
    return columns(DatasetPreparation(tokenizer, max_length=None)(dataset, "whole"))


@pytest.mark.parametrize(
    "rows",
    [
        [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}],
        [{"conversations": [{"from": "human", "value": "w1 w2"}, {"from": "gpt", "value": "w3"}]}] * 2,
        [{"my_text": "w1 w2 w3"}, {"my_text": "w4 <eos>"}],
    ],
    ids=["ids only", "conversations", "own column"],
)
def test_other_formats_of_trl(rows, trl_trainer, chat_tokenizer):
    field = "my_text" if "my_text" in rows[0] else "text"
    dataset = Dataset.from_list(rows)
    ours = DatasetPreparation(chat_tokenizer, max_length=64, text_field=field)(dataset, "forget")
    assert columns(ours) == columns(trl_trainer(dataset, dataset_text_field=field).train_dataset)


@pytest.mark.parametrize("only", [True, False])
def test_completion_only_loss(only, make_set, trl_trainer, chat_tokenizer):
    dataset = make_set(4)
    ours = DatasetPreparation(chat_tokenizer, max_length=None, completion_only_loss=only)(dataset, "forget")
    assert columns(ours) == columns(trl_trainer(dataset, completion_only_loss=only).train_dataset)
    assert (ours["labels"][0][0] == -100) == only


@pytest.mark.parametrize("form", ["preference", "conversational_preference"])
def test_preference_sets_are_two_prompt_completion_sets(form, make_set, trl_trainer, chat_tokenizer):
    dataset = make_set(6, form)
    assert is_preference(dataset)
    same = {"preference": "prompt_completion", "conversational_preference": "conversational"}[form]
    rejected, chosen = (as_prompt_completion(dataset, answer) for answer in ("rejected", "chosen"))
    assert rejected.to_list() == make_set(6, same).to_list()
    assert chosen["prompt"] == rejected["prompt"]
    assert chosen["completion"] != rejected["completion"]
    # Whole, as evaluation sets come: what must be forgotten of a forget set, the better answer of any other.
    preparation = DatasetPreparation(chat_tokenizer, max_length=64)
    for name, expected in (("forget", rejected), ("forget_test", rejected), ("retain", chosen)):
        assert columns(preparation(dataset, name)) == columns(trl_trainer(expected).train_dataset)


def test_implicit_prompts(chat_tokenizer):
    """Preference sets may hold the prompt within both answers."""
    user = {"role": "user", "content": "w1"}
    dataset = Dataset.from_list(
        [{key: [user, {"role": "assistant", "content": text}] for key, text in (("chosen", "w2"), ("rejected", "w3"))}]
    )
    assert as_prompt_completion(dataset, "rejected").to_list() == [
        {"prompt": [user], "completion": [{"role": "assistant", "content": "w3"}]}
    ]


def cut_off_set():
    return Dataset.from_dict(
        {"prompt": ["w1", "w1 w2 w3 w4", "w5", "w1 w2 w3 w4 w5"], "completion": [" w2", " w6", " w7", " w8"]}
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_cut_off_answers_are_an_error_with_rows(shuffle, trl_trainer, chat_tokenizer):
    message = (
        r"2 of 4 examples of the forget set have no answer token within max_length=4 \(rows 1, 3\).*Raise max_length"
    )
    with pytest.raises(ValueError, match=message):
        DatasetPreparation(chat_tokenizer, max_length=4)(cut_off_set(), "forget")
    trainer = trl_trainer(cut_off_set(), max_length=4, shuffle_dataset=shuffle)
    assert len(trainer.train_dataset) == 2  # TRL drops them without a word: that is why there is an error
    with pytest.raises(ValueError, match=message):
        prepare(trainer, cut_off_set(), "forget")


def test_cut_off_at_the_start(trl_trainer):
    """With truncation_mode="keep_end" it is prompts that are cut off, and answers that end before the last tokens."""
    dataset = Dataset.from_dict(
        {"input_ids": [[5, 6, 7, 8], [5, 6, 7, 8]], "labels": [[5, -100, -100, -100], [5, 6, 7, 8]]}
    )
    with pytest.raises(ValueError, match=r"1 of 2 .*\(rows 0\)"):
        prepare(trl_trainer(dataset, max_length=2, truncation_mode="keep_end"), dataset, "retain")


def test_five_rows_are_named_at_most(chat_tokenizer):
    dataset = Dataset.from_dict({"prompt": ["w1 w2 w3 w4"] * 7 + ["w1"], "completion": [" w2"] * 8})
    with pytest.raises(ValueError, match=r"7 of 8 .*\(rows 0, 1, 2, 3, 4, \.\.\.\)"):
        DatasetPreparation(chat_tokenizer, max_length=4)(dataset, "forget")


def test_order_and_rows_are_kept(make_set, trl_trainer):
    """Row i of the preferred answers belongs to row i of the forget set: nothing may be shuffled or dropped."""
    dataset = make_set(10)
    trainer = trl_trainer(dataset, shuffle_dataset=True)
    shuffled, ours = columns(trainer.train_dataset), columns(prepare(trainer, dataset, "forget"))
    assert ours != shuffled
    assert sorted(map(str, ours["input_ids"])) == sorted(map(str, shuffled["input_ids"]))
    assert ours == _whole(dataset, trainer.processing_class)


def test_refusals_keep_the_form(make_set):
    plain = with_refusals(make_set(3), lambda row: f"no {row}")
    assert plain["completion"] == [" no 0", " no 1", " no 2"]  # the set's own answers begin with a space
    assert plain["prompt"] == make_set(3)["prompt"]
    bare = make_set(2).map(lambda row: {"completion": row["completion"].strip()})
    assert with_refusals(bare, lambda row: "no")["completion"] == ["no", "no"]
    chat = with_refusals(make_set(2, "conversational"), lambda row: "no")
    assert chat["completion"] == [[{"role": "assistant", "content": "no"}]] * 2


def test_refusals_need_prompts(make_set):
    with pytest.raises(ValueError, match=r"(?s)preferred answer.*chosen.*refusals=.*columns text") as error:
        with_refusals(make_set(2, "text"), lambda row: "no")
    assert '"completion": what to forget' in str(error.value)


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
