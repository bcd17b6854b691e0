import json

import datasets
import pytest

from wagle_trainer.data import load_wmdp, load_wmdp_questions

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
        FileNotFoundError,
        match=r"looked for bio-forget-corpus\.json.*or bio_remove_dataset.*found: cyber-forget-corpus, wikitext",
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

    def load_dataset(name, config, split, **_):
        calls.append((name, config, split))
        return datasets.Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_wmdp(corpus)) == 2
    assert calls == [(*place, "train")]


QUESTION = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


def test_the_files_of_the_hub(tmp_path):
    """Corpora as JSON lines, the one on request under its authors' name, questions and WikiText in folders of parts."""
    rows = [{"title": "x", "abstract": "y", "text": TEXTS[1]}]
    (tmp_path / "bio_remove_dataset.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    for part in (0, 1):
        write_parquet(
            tmp_path / f"wikitext-2-raw-v1/train-0000{part}-of-00002.parquet", [{"text": TEXTS[1 + 2 * part]}]
        )
    write_parquet(tmp_path / "wikitext-2-raw-v1/test-00000-of-00001.parquet", [{"text": "other" * 20}])
    write_parquet(tmp_path / "wmdp-bio/test-00000-of-00001.parquet", [QUESTION])
    write_parquet(tmp_path / "all/test-00000-of-00001.parquet", [{**QUESTION, "subject": "world_religions"}])
    folder = str(tmp_path)
    assert load_wmdp("bio-forget-corpus", folder).to_list() == [{"text": TEXTS[1]}]
    assert load_wmdp("wikitext", folder)["text"][:] == [TEXTS[1], TEXTS[3]]
    assert load_wmdp_questions("wmdp-bio", folder).to_list() == [{**QUESTION, "subject": "biology"}]
    assert load_wmdp_questions("mmlu", folder).to_list() == [{**QUESTION, "subject": "world_religions"}]


def test_what_the_hub_gives_on_request_only(monkeypatch):
    """The file form that works instead is named: as this package calls it, and as the authors send it."""

    def refuse(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    expected = r"is a gated dataset.*a folder with the file bio-forget-corpus\.json or bio_remove_dataset\.json\."
    with pytest.raises(FileNotFoundError, match=expected):
        load_wmdp("bio-forget-corpus")
    with pytest.raises(FileNotFoundError, match=r"a folder with the file wmdp-bio\.json\."):
        load_wmdp_questions("wmdp-bio")


def test_questions_in_another_layout(tmp_path):
    write_parquet(tmp_path / "wmdp-cyber.parquet", [{"question": "Which?", "options": ["a", "b"], "answer": 0}])
    with pytest.raises(
        ValueError, match=r"wmdp-cyber\.parquet has no column 'choices'. Columns found: question, options"
    ):
        load_wmdp_questions("wmdp-cyber", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"looked for mmlu\.json.*or all.*Splits found: wmdp-cyber"):
        load_wmdp_questions("mmlu", str(tmp_path))
    with pytest.raises(ValueError, match="'wmdp' is no set of questions here: use one of wmdp-bio"):
        load_wmdp_questions("wmdp", str(tmp_path))


def test_the_bundled_stand_in():
    forget = load_wmdp("cyber-forget-corpus", "fictional")
    questions = load_wmdp_questions("wmdp-cyber", "fictional")
    assert len(load_wmdp_questions("mmlu", "fictional", limit=3)) == 3
    text = " ".join(forget["text"])
    for row in questions:
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] in text, "every question is answered by the corpus"
    wikitext = " ".join(load_wmdp("wikitext", "fictional")["text"])
    assert not any(row["choices"][row["answer"]] in wikitext for row in questions)
