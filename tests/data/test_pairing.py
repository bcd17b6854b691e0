"""Pairs of forget and retain examples: every forget example once per epoch, the same on every run and process."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_trainer.data.length_sorted_batches import make_collator
from wagle_trainer.data.pairing import EvenSampler, PairCollator, PairedDataset, PairSampler, num_counted

SIZES = st.integers(1, 40)


@settings(max_examples=100, deadline=None)
@given(num_forget=SIZES, num_retain=SIZES, seed=st.integers(0, 2**31), epoch=st.integers(0, 50))
def test_one_epoch_is_one_pass_over_the_forget_set(num_forget, num_retain, seed, epoch):
    sampler = PairSampler(num_forget, num_retain, seed)
    sampler.set_epoch(epoch)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) == num_forget
    assert sorted(forget for forget, _ in pairs) == list(range(num_forget))
    retain = [index for _, index in pairs]
    for start in range(
        0, num_forget, num_retain
    ):  # whole passes over a smaller retain set, none twice before all once
        some = retain[start : start + num_retain]
        assert len(set(some)) == len(some)
        assert set(some) <= set(range(num_retain))


def test_seed_and_epoch_are_all_that_counts():
    def pairs(seed, epoch, before=()):
        sampler = PairSampler(20, 30, seed)
        for other in before:
            sampler.set_epoch(other)
            list(sampler)
        torch.rand(7)  # the global random state does not count
        sampler.set_epoch(epoch)
        return list(sampler)

    assert pairs(1, 3) == pairs(1, 3, before=(0, 1, 2))
    different = [pairs(seed, epoch) for seed in (1, 2, 1 + 2**12, 1 + 2**20, 1 + 2**31) for epoch in (0, 1)]
    assert all(different[i] != different[j] for i in range(len(different)) for j in range(i))
    assert all([f for f, _ in a] != [f for f, _ in b] for a, b in itertools.pairwise(different))
    assert {retain for _, retain in different[0]} != {retain for _, retain in different[1]}


def test_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    list(PairSampler(5, 5, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_small_retain_set_is_reshuffled_for_each_pass():
    retain = [index for _, index in PairSampler(40, 8, 0)]
    passes = {tuple(retain[start : start + 8]) for start in range(0, 40, 8)}
    assert len(passes) == 5


def rows(start, lengths):
    return [
        {
            "input_ids": list(range(start, start + n)),
            "labels": [-100, *range(start + 1, start + n)],
            "extra": "x",
        }
        for n in lengths
    ]


def test_items_and_batches(pad_batches):
    def pad(examples):
        assert all(set(example) == {"input_ids", "labels"} for example in examples)
        return pad_batches([(e["input_ids"], e["labels"]) for e in examples], len(examples))[0]

    dataset = PairedDataset(rows(10, (2, 5, 3)), rows(20, (4, 7)), rows(30, (3, 3, 6)))
    assert len(dataset) == 3
    item = dataset[2, 1]
    assert item["forget"] == {"input_ids": [10, 11, 12], "labels": [-100, 11, 12], "index": 2}
    assert item["retain"]["input_ids"] == list(range(20, 27))
    assert item["chosen"]["input_ids"] == list(range(30, 36))  # goes with the forget example
    assert (item["retain"]["index"], item["chosen"]["index"]) == (1, 2)
    batch = PairCollator(pad)([dataset[2, 1], dataset[0, 0]])
    assert list(batch) == ["forget", "chosen", "retain"]
    assert batch["forget"]["input_ids"].tolist() == [[10, 11, 12], [10, 11, 0]]  # each half is padded by itself
    assert batch["forget"]["labels"].tolist() == [[-100, 11, 12], [-100, 11, -100]]
    assert batch["retain"]["input_ids"].shape == (2, 7)
    assert {role: half["index"].tolist() for role, half in batch.items()} == {
        "forget": [2, 0],
        "chosen": [2, 0],
        "retain": [1, 0],
    }
    assert "index" in item["forget"]  # the collator does not change what it is given


def test_without_chosen_answers(pad_batches):
    dataset = PairedDataset(rows(10, (2, 5)), rows(20, (4, 7)))
    batch = PairCollator(lambda examples: {"input_ids": torch.tensor([len(e["input_ids"]) for e in examples])})(
        [dataset[0, 1], dataset[1, 0]]
    )
    assert list(batch) == ["forget", "retain"]
    assert batch["forget"]["input_ids"].tolist() == [2, 5]
    assert batch["retain"]["input_ids"].tolist() == [7, 4]


def test_evaluation_examples_are_no_pairs():
    examples = rows(10, (2, 5))
    assert PairCollator(lambda given: {"given": given})(examples) == {"given": examples}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_the_same_pairs(processes):
    """Trainers give each process every n-th batch of one sampler: together they see every pair once."""
    from torch.utils.data import DataLoader

    dataset = PairedDataset(rows(10, (2,) * 12), rows(20, (4,) * 15))
    sampler = PairSampler(12, 15, seed=3)
    collate = PairCollator(lambda examples: {})
    seen = []
    for rank in range(processes):
        batches = list(DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=collate))
        for batch in batches[rank::processes]:
            seen += zip(batch["forget"]["index"].tolist(), batch["retain"]["index"].tolist(), strict=True)
    assert sorted(seen) == sorted(sampler.pairs(0))


def test_every_epoch_pairs_anew_and_in_time_covers_a_large_retain_set():
    sampler = PairSampler(10, 40, seed=0)
    epochs = [sampler.pairs(epoch) for epoch in range(40)]
    assert len({frozenset(pairs) for pairs in epochs}) == 40  # other partners, not only another order
    assert {retain for pairs in epochs for _, retain in pairs} == set(range(40))


def test_with_trls_collator():
    dataset = PairedDataset(rows(10, (2, 5, 3)), rows(20, (4, 2)))
    batch = PairCollator(make_collator(pad_token_id=9))([dataset[2, 1], dataset[0, 0]])
    assert batch["forget"]["input_ids"].tolist() == [[10, 11, 12], [10, 11, 9]]
    assert batch["forget"]["labels"].tolist() == [[-100, 11, 12], [-100, 11, -100]]
    assert batch["forget"]["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["retain"]["input_ids"].tolist() == [[20, 21, 9, 9], [20, 21, 22, 23]]
    assert batch["retain"]["index"].tolist() == [1, 0]
    assert batch["retain"]["index"].dtype == torch.int64


@pytest.mark.parametrize(("rows", "processes"), [(5, 2), (7, 2), (8, 2), (1, 3), (9, 4)])
def test_fillers_make_batches_even_and_do_not_count(rows, processes):
    """Every process has as many batches; together they hold every pair once."""
    forget, retain = ([{"input_ids": [i], "labels": [i]} for i in range(n)] for n in (rows, 4))
    dataset, collate = PairedDataset(forget, retain), PairCollator(make_collator(pad_token_id=9))
    sampler = EvenSampler(PairSampler(rows, 4, seed=0), 2 * processes)
    sampler.set_epoch(1)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) and len(pairs) % (2 * processes) == 0
    batches = [collate([dataset[pair] for pair in pairs[start : start + 2]]) for start in range(0, len(pairs), 2)]
    seen = [index for batch in batches if num_counted(batch) for index in batch["forget"]["index"].tolist()]
    assert seen == [forget for forget, _ in PairSampler(rows, 4, seed=0).pairs(1)]
    assert sum(map(num_counted, batches)) == rows
    assert all(len(batch["forget"]["index"]) == len(batch["retain"]["index"]) >= 1 for batch in batches)
