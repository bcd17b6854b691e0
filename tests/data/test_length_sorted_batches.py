"""Batches of similar length."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_trainer.data.length_sorted_batches import LengthSortedBatches, make_collator


def dataset_of(lengths):
    return Dataset.from_list([{"input_ids": [row] * n, "labels": [row] * n} for row, n in enumerate(lengths)])


def lists(examples):
    assert all(set(example) == {"input_ids", "labels"} for example in examples)
    return [example["input_ids"] for example in examples]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), size=st.integers(1, 6), processes=st.integers(1, 4)
)
def test_all_rows_once_longest_first(lengths, size, processes):
    dataset = dataset_of(lengths)
    whole = LengthSortedBatches(dataset, size, lists)
    assert len(whole) == -(-len(lengths) // size)
    assert sorted(row for rows in whole.rows for row in rows) == list(range(len(lengths)))
    sorted_lengths = [len(ids) for batch in whole for ids in batch]
    assert sorted_lengths == sorted(lengths, reverse=True)
    assert {len(rows) for rows in list(whole.rows)[:-1]} <= {size}
    for rows, batch in zip(whole.rows, whole, strict=True):  # iterated a second time
        assert [ids[0] for ids in batch] == rows
    shares = [
        LengthSortedBatches(dataset, size, lists, process=rank, num_processes=processes) for rank in range(processes)
    ]
    assert sorted(rows for share in shares for rows in share.rows) == sorted(whole.rows)
    assert max(len(share) for share in shares) - min(len(share) for share in shares) <= 1


def test_only_some_rows():
    batches = LengthSortedBatches(dataset_of([3, 9, 4, 8]), 2, lists, rows=[0, 3, 2])
    assert list(batches.rows) == [[3, 2], [0]]


@pytest.mark.parametrize("pad_token_id", [0, 7])
def test_collator_pads_on_the_right(pad_token_id):
    batch = make_collator(pad_token_id)(
        [{"input_ids": [5, 6, 8], "labels": [-100, 6, 8]}, {"input_ids": [9, 9], "labels": [-100, 9]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 8], [9, 9, pad_token_id]]
    assert batch["labels"].tolist() == [[-100, 6, 8], [-100, 9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["input_ids"].dtype == torch.int64
