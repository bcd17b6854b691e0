"""Our preparation is TRL's, without its trainer. If a test here fails after an update of TRL, then
`SFTTrainer._prepare_dataset` reads or gives something new: change wagle_trainer/data/preparation.py."""

import warnings

import pytest
from datasets import Dataset
from transformers import BatchFeature, ProcessorMixin
from trl import SFTConfig, SFTTrainer

from wagle_trainer.data.fingerprint import fingerprint
from wagle_trainer.data.preparation import (
    DatasetPreparation,
    as_prompt_completion,
    is_preference,
    prepare,
    prepare_by_its_own_format,
    with_refusals,
)
from wagle_trainer.losses import get_loss

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
        {"input_ids": [[5, 6, 7, 8], [5, 6, 7, 8]], "labels": [[5, 6, -100, -100], [-100, -100, 7, 8]]}
    )
    with pytest.raises(ValueError, match=r"1 of 2 .*\(rows 0\)"):
        prepare(trl_trainer(dataset, max_length=2, truncation_mode="keep_end"), dataset, "retain")


@pytest.mark.parametrize(("mode", "rows"), [("keep_start", "rows 1"), ("keep_end", "rows 2")])
def test_answers_cut_short_are_counted(mode, rows, chat_tokenizer):
    """TRL cuts them without a word: what lies beyond would be neither forgotten nor retained."""
    ids = [[5, 6, 7, 8, 9]] * 3
    labels = [[-100, 6, 7, -100, -100], [-100, -100, 7, 8, 9], [-100, 6, -100, 8, -100]]
    if mode == "keep_start":
        labels[2] = labels[0]
    else:
        labels[0] = labels[1]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    preparation = DatasetPreparation(chat_tokenizer, max_length=3, truncation_mode=mode)
    with pytest.warns(
        UserWarning, match=rf"1 of 3 examples of the forget set are longer than max_length=3 \({rows}\)"
    ):
        prepared = preparation(dataset, "forget")
    assert {len(ids) for ids in prepared["input_ids"]} == {3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DatasetPreparation(chat_tokenizer, max_length=5)(dataset, "forget")


def test_a_label_that_nothing_predicts_is_none(chat_tokenizer):
    dataset = Dataset.from_dict({"input_ids": [[5], [5, 6]], "labels": [[5], [5, 6]]})
    with pytest.warns(UserWarning, match=r"1 of 2 examples of the forget set have no target token \(rows 0\)"):
        assert DatasetPreparation(chat_tokenizer, max_length=None)(dataset, "forget")["input_ids"][:] == [[5, 6]]


@pytest.mark.parametrize("form", ["text", "messages", "prompt_completion"])
def test_columns_beside_those_of_the_format_do_no_harm(form, make_set, chat_tokenizer):
    """TRL stumbles over a prompt without a completion, and forgets the end of a completion with a text beside it."""
    dataset = make_set(6, form)
    column = "text" if form == "prompt_completion" else "prompt"
    preparation = DatasetPreparation(chat_tokenizer, max_length=64)
    other = dataset.add_column(column, ["w9"] * 6)
    assert columns(preparation(other, "forget")) == columns(preparation(dataset, "forget"))


@pytest.mark.parametrize("form", ["messages", "prompt_completion", "text"])
def test_a_formatted_text_is_what_counts(form, make_set, trl_trainer):
    text = Dataset.from_dict({"text": ["w7 w8"] * 4})
    trainer = trl_trainer(text)
    formatted = prepare_by_its_own_format(
        trainer, make_set(4, form), trainer.processing_class, trainer.args, False, lambda example: "w7 w8", "forget"
    )
    assert columns(formatted) == columns(trainer.train_dataset)


def test_sets_in_the_format_of_tensors(make_set, chat_tokenizer):
    preparation = DatasetPreparation(chat_tokenizer, max_length=64)
    dataset = make_set(4, "tokenized")
    prepared = preparation(dataset.with_format("torch"), "forget")
    assert fingerprint(prepared) == fingerprint(dataset)


def test_what_the_template_takes_besides_is_kept(make_set, chat_tokenizer):
    chat_tokenizer.chat_template = f"{{% if thinking is defined %}}w50 {{% endif %}}{chat_tokenizer.chat_template}"
    switched_on = [{"thinking": True}] * 4
    preparation = DatasetPreparation(chat_tokenizer, max_length=64)
    preference = make_set(4, "conversational_preference").add_column("chat_template_kwargs", switched_on)
    plain = make_set(4, "conversational").add_column("chat_template_kwargs", switched_on)
    w50 = chat_tokenizer.convert_tokens_to_ids("w50")
    for dataset in (
        plain,
        with_refusals(plain, lambda row: "no"),
        *(as_prompt_completion(preference, answer) for answer in ("chosen", "rejected")),
    ):
        assert {ids[0] for ids in preparation(dataset, "forget")["input_ids"]} == {w50}


def test_assistant_only_loss(make_set, trl_trainer, chat_tokenizer):
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}",
    )
    dataset = make_set(4, "messages")
    ours = DatasetPreparation(chat_tokenizer, max_length=64, assistant_only_loss=True)(dataset, "forget")
    assert columns(ours) == columns(trl_trainer(dataset, assistant_only_loss=True).train_dataset)
    assert ours["labels"][0][0] == -100


class Processor(ProcessorMixin):
    """That of a multimodal model, as far as texts go: it makes a batch of one of every text."""

    def __init__(self, tokenizer, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, **kwargs):
        return BatchFeature(dict(self.tokenizer([text], add_special_tokens=kwargs.get("add_special_tokens", True))))


def test_processors_of_multimodal_models(make_set, chat_tokenizer):
    dataset, processor = make_set(4), Processor(chat_tokenizer)
    expected = columns(DatasetPreparation(chat_tokenizer, max_length=64)(dataset, "forget"))
    assert columns(DatasetPreparation(processor, max_length=64)(dataset, "forget")) == expected
    loss = get_loss("jensun")(target="w3 w4")
    loss.setup(processor, seed=0)
    assert loss.target == chat_tokenizer.convert_tokens_to_ids(["w3", "w4"])


def test_five_rows_are_named_at_most(chat_tokenizer):
    dataset = Dataset.from_dict({"prompt": ["w1 w2 w3 w4"] * 7 + ["w1"], "completion": [" w2"] * 8})
    with pytest.raises(ValueError, match=r"7 of 8 .*\(rows 0, 1, 2, 3, 4, \.\.\.\)"):
        DatasetPreparation(chat_tokenizer, max_length=4)(dataset, "forget")


def test_order_and_rows_are_kept(make_set, trl_trainer):
    """Row i of the chosen answers belongs to row i of the forget set: nothing may be shuffled or dropped."""
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
    lines = make_set(2).map(lambda row: {"completion": f"\n\n{row['completion']}"})
    assert with_refusals(lines, lambda row: "no")["completion"] == ["\n\n no"] * 2
    bare = make_set(2).map(lambda row: {"completion": row["completion"].strip()})
    assert with_refusals(bare, lambda row: "no")["completion"] == ["no", "no"]
    chat = with_refusals(make_set(2, "conversational"), lambda row: "no")
    assert chat["completion"] == [[{"role": "assistant", "content": "no"}]] * 2


def test_refusals_need_prompts(make_set):
    with pytest.raises(ValueError, match=r"(?s)chosen answer.*chosen.*refusals=.*columns text") as error:
        with_refusals(make_set(2, "text"), lambda row: "no")
    assert '"completion": what to forget' in str(error.value)
