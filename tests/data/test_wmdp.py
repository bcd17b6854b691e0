import json

import datasets
import pytest

from wagle_trainer.data import load_wmdp

TEXTS = ["= Heading =", "a sentence that is long enough to be kept " * 2, None, "another sentence of some length " * 3]


@pytest.fixture
def folder(tmp_path):
    rows = [{"title": "x", "text": text} for text in TEXTS]
    (tmp_path / "cyber-forget-corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "wikitext.jsonl").write_text(json.dumps({"text": "short"}), encoding="utf-8")
    return str(tmp_path)


def test_long_enough_texts_of_a_folder(folder):
    assert load_wmdp("cyber-forget-corpus", folder).to_list() == [{"text": TEXTS[1]}, {"text": TEXTS[3]}]
    assert load_wmdp("cyber-forget-corpus", folder, limit=1)["text"][:] == [TEXTS[1]]
    assert load_wmdp("cyber-forget-corpus", folder, min_length=10)["text"][0] == TEXTS[0]


def test_what_is_missing_is_named(folder):
    with pytest.raises(
        FileNotFoundError, match=r"looked for bio-forget-corpus\.json.*found: cyber-forget-corpus, wikitext"
    ):
        load_wmdp("bio-forget-corpus", folder)
    with pytest.raises(FileNotFoundError, match="'cais/wmdp-bio-forget-corpus' is neither a folder nor"):
        load_wmdp("bio-forget-corpus")
    with pytest.raises(ValueError, match="'chem' is not a corpus of WMDP: use one of bio-forget-corpus"):
        load_wmdp("chem", folder)
    with pytest.raises(ValueError, match="'wikitext' in .* has no text of more than 50 characters"):
        load_wmdp("wikitext", folder)


@pytest.mark.parametrize(
    ("corpus", "place"),
    [
        ("wikitext", ("Salesforce/wikitext", "wikitext-2-raw-v1")),
        ("bio-retain-corpus", ("cais/wmdp-corpora", "bio-retain-corpus")),
        ("bio-forget-corpus", ("cais/wmdp-bio-forget-corpus", None)),
    ],
)
def test_where_the_corpora_are_on_the_hub(monkeypatch, corpus, place):
    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        return datasets.Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_wmdp(corpus)) == 2
    assert calls == [(*place, "train")]
