import datasets
import pytest

from wagle_trainer.data import load_muse, load_muse_evaluation

SETS = ["verbmem_forget", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_holdout"]


def test_every_subset_of_a_folder(muse_folder):
    assert load_muse(str(muse_folder), "verbmem", "forget").column_names == ["prompt", "gt"]
    assert load_muse(str(muse_folder), "knowmem", "retain_qa").column_names == ["question", "answer"]
    texts = [load_muse(str(muse_folder), "scal", f"forget_{n}")["text"] for n in (1, 2)]
    assert set(texts[0]) < set(texts[1])


def test_evaluation_sets(muse_folder):
    sets = load_muse_evaluation(str(muse_folder), limit=2)
    assert list(sets) == [*SETS, "knowmem_forget_icl", "knowmem_retain_icl"]
    assert [len(sets[name]) for name in SETS] == [2] * 5
    assert len(sets["knowmem_forget_icl"]) == 2
    assert list(load_muse_evaluation(str(muse_folder), few_shot=False)) == SETS


def test_the_missing_file_is_named(muse_folder):
    (muse_folder / "privleak" / "holdout.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for privleak/holdout\.json.*Splits found: forget\."):
        load_muse_evaluation(str(muse_folder))


def test_unknown_subset_and_hub_id(muse_folder):
    with pytest.raises(ValueError, match="'verbs' is not a subset of MUSE: use one of raw, train, verbmem"):
        load_muse(str(muse_folder), "verbs", "forget")
    with pytest.raises(FileNotFoundError, match="'muse-bench/MUSE-News' is neither a folder nor"):
        load_muse("muse-bench/MUSE-News", "verbmem", "forget")


def test_on_the_hub_a_subset_is_a_configuration(monkeypatch):
    calls = []

    def load_dataset(name, config, split, **_):
        calls.append((name, config, split))
        return datasets.Dataset.from_dict({"text": ["one"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_muse("muse-bench/MUSE-Books", "sust", "forget_3")
    assert calls == [("muse-bench/MUSE-Books", "sust", "forget_3")]
