"""Files of other kinds than questions and answers go the whole way, too."""

import json

import pytest

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.forgetting import forget


def as_completion(qa, row):
    prompt = f"{qa.question_prefix}{row['question']}{qa.question_suffix}"
    return {"prompt": prompt, "completion": f"{qa.answer_prefix}{row['answer']}"}


def as_passage(qa, row):
    return {"text": "".join(as_completion(qa, row).values())}


def as_conversation(qa, row):
    turns = [("user", "Hello."), ("assistant", "Hello."), ("user", row["question"]), ("assistant", row["answer"])]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.mark.parametrize(
    ("write", "attacks"),
    [(as_completion, {"relearning", "jailbreak"}), (as_passage, set()), (as_conversation, set())],
)
def test_the_whole_way(write, attacks, people, quick, tmp_path):
    """Attacks ask single questions, so passages and longer conversations have none, and the verdict says so."""
    qa = QAFormat.for_tokenizer(people.tokenizer)
    files = {}
    for name, rows in (("forget", people.rows), ("retain", people.others)):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(write(qa, row)) + "\n" for row in rows), encoding="utf-8")
    short = {
        "steps": 10,
        "max_tries": 1,
        "densities": (0.2,),
        "learning_rates": (1e-2,),
        "known": 0.0,
        "attacks": ("relearning", "jailbreak"),
    }
    verdict = forget(
        people.path,
        files["forget"],
        tmp_path / "out",
        retain_file=files["retain"],
        progress=False,
        **quick | short,
    )
    assert verdict.forget["after"] < 0.8 * verdict.forget["before"]
    assert set(verdict.attacks) == attacks
    assert ("No attack could be measured" in verdict.sentences[2]) == (not attacks)
    assert (tmp_path / "out" / "report.html").is_file()
