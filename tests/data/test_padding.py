"""Padding of sets that were tokenized elsewhere has no labels, and sets on disk leave no copies in the cache."""

import warnings

import pytest
from datasets import Dataset, load_dataset

from wagle_trainer.data.no_cache import without_cache
from wagle_trainer.data.padding import without_padding
from wagle_trainer.data.preparation import DatasetPreparation, prepare

PAD, EOS, A, B = 0, 1, 5, 6


def prepared(rows, tokenizer):
    return DatasetPreparation(tokenizer, max_length=None)(Dataset.from_list(rows), "forget").to_list()


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [A, B, EOS, PAD, PAD]},
        {"input_ids": [A, B, EOS, PAD, PAD], "labels": [A, B, EOS, PAD, PAD]},  # copies
        {"input_ids": [PAD, PAD, A, B, EOS], "labels": [PAD, PAD, A, B, EOS]},
        {"input_ids": [A, B, EOS, A, A], "labels": [A, B, EOS, A, A], "attention_mask": [1, 1, 1, 0, 0]},
        {"input_ids": [A, B, EOS, EOS], "attention_mask": [1, 1, 1, 0]},
    ],
)
def test_padding_has_no_labels(row, word_tokenizer):
    with pytest.warns(UserWarning, match=r"tokens in 1 of 2 rows of the forget set are padding"):
        found = prepared(
            [{**row}, {name: [1] * 3 if name == "attention_mask" else [A, B, A] for name in row}], word_tokenizer
        )
    assert found == [{"input_ids": ids, "labels": ids} for ids in ([A, B, EOS], [A, B, A])]


def test_where_the_end_is_the_padding_one_end_stays(word_tokenizer):
    word_tokenizer.pad_token = word_tokenizer.eos_token
    with pytest.warns(UserWarning, match="3 tokens in 2 of 2"):
        found = prepared([{"input_ids": [A, B, EOS, EOS, EOS]}, {"input_ids": [EOS, A, B, EOS]}], word_tokenizer)
    assert [row["labels"] for row in found] == [[A, B, EOS]] * 2


def test_a_set_without_padding_is_left_as_it_is(word_tokenizer):
    rows = Dataset.from_list([{"input_ids": [A, B, EOS], "labels": [-100, B, EOS]}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert without_padding(rows, word_tokenizer, "forget") is rows


def test_a_forget_set_on_disk_leaves_no_copy_beside_its_files(word_tokenizer, tmp_path):
    (tmp_path / "f.jsonl").write_text('{"prompt": "w1", "completion": " w2"}\n')
    rows = load_dataset("json", data_files=str(tmp_path / "f.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    before = set((tmp_path / "cache").rglob("*.arrow"))
    assert before
    tokenize = DatasetPreparation(word_tokenizer, max_length=None)
    tokenize(rows, "forget")
    prepare(tokenize, rows, "forget", formatting_func=lambda row: row["prompt"] + row["completion"])
    assert set((tmp_path / "cache").rglob("*.arrow")) == before
    with pytest.raises(KeyError), without_cache():
        raise KeyError
    assert DatasetPreparation(word_tokenizer, max_length=None)(rows, "retain").cache_files  # caching is on again
