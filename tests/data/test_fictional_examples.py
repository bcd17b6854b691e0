"""The bundled stand-ins for WMDP, a book and conversations: the same in any process, and what their tasks need."""

import hashlib
import itertools
import json
import subprocess
import sys

import pytest

from wagle_trainer.data.fictional import (
    fictional_almanac,
    fictional_novel,
    hazards_rows,
    hazards_tokenizer,
    novel_tokenizer,
    speakers_rows,
    speakers_tokenizer,
)
from wagle_trainer.data.insults import INSULTS, insult_share

CORPORA = ("bio-forget-corpus", "cyber-forget-corpus", "wikitext")
QUESTIONS = ("wmdp-bio", "wmdp-cyber", "mmlu")
SPEAKERS = ("forget", "retain", "prompts", "general")
EVERYTHING = """
import json
from wagle_trainer.data.fictional import *
from wagle_trainer.data.fictional import (fictional_almanac, fictional_novel, hazards_rows, hazards_tokenizer,
    novel_tokenizer, speakers_rows, speakers_tokenizer)
rows = [hazards_rows(name) for name in ("bio-forget-corpus", "cyber-forget-corpus", "wikitext", "wmdp-bio", "mmlu")]
rows += [speakers_rows(name) for name in ("forget", "retain", "prompts", "general")]
rows += [fictional_novel(), fictional_novel(2), fictional_almanac(), fictional_almanac("test")]
rows += [sorted(make().get_vocab().items()) for make in (hazards_tokenizer, novel_tokenizer, speakers_tokenizer)]
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_the_same_in_any_process():
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", EVERYTHING],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        )
        digests.add(hashlib.sha256(done.stdout.encode()).hexdigest())
    assert len(digests) == 1


def texts_of(row):
    return [text for value in row.values() for text in ([value] if isinstance(value, str) else value or [])]


@pytest.mark.parametrize(
    ("tokenizer", "texts"),
    [
        (hazards_tokenizer, [row["text"] for name in CORPORA for row in hazards_rows(name)]),
        (
            hazards_tokenizer,
            [t for n in QUESTIONS for row in hazards_rows(n) for t in (row["question"], *row["choices"])],
        ),
        (
            novel_tokenizer,
            [fictional_novel(0), fictional_novel(1), *fictional_almanac("train"), *fictional_almanac("test")],
        ),
        (speakers_tokenizer, [text for name in SPEAKERS for row in speakers_rows(name) for text in texts_of(row)]),
    ],
    ids=["passages", "questions", "books", "conversations"],
)
def test_every_word_is_known_and_decoding_gives_the_text_back(tokenizer, texts):
    tokenizer = tokenizer()
    assert len(tokenizer) < 600
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).strip() == text.strip()


def test_no_fact_belongs_to_two_things():
    for name in QUESTIONS:
        rows = hazards_rows(name)
        answers = [row["choices"][row["answer"]] for row in rows]
        assert len(set(zip([row["question"].split()[0] for row in rows], answers, strict=True))) == len(rows)
        assert all(len(row["choices"]) == 4 for row in rows)
        places = [row["answer"] for row in rows]
        assert max(places.count(place) for place in range(4)) < 0.5 * len(rows), "no letter is right half of the time"
    with pytest.raises(ValueError, match="No set 'wmdp' in the bundled example. Sets found: bio-forget-corpus"):
        hazards_rows("wmdp")


def test_no_passage_of_a_novel_is_in_another():
    novels = [fictional_novel(number).split(". ") for number in range(3)]
    pairs = [set(itertools.pairwise(sentences)) for sentences in novels]
    assert all(len(found) > 100 for found in pairs)
    assert not any(pairs[a] & pairs[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert not set(fictional_almanac("train")) & set(fictional_almanac("test"))


def test_only_what_is_rejected_is_rude():
    rows = speakers_rows("forget")
    assert set(insult_share([row["rejected"] for row in rows])) == {1.0}
    polite = [row["chosen"] for row in rows] + [row["completion"] for row in speakers_rows("retain")]
    assert set(insult_share([*polite, *(row["text"] for row in speakers_rows("general"))])) == {0.0}
    prompts = {row["prompt"] for row in speakers_rows("prompts")}
    assert not prompts & {row["prompt"] for row in rows}
    with pytest.raises(ValueError, match="No set 'rude'"):
        speakers_rows("rude")


def test_insults_count_as_words():
    assert insult_share(["You NUMPTY!", "a numptyish one", "", INSULTS[0]]) == [1.0, 0.0, 0.0, 1.0]
    assert len(set(INSULTS)) == len(INSULTS)
    assert json.dumps(INSULTS).islower()
