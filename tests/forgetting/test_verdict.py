"""From numbers to words and an exit code."""

import pytest

from wagle_trainer.forgetting.verdict import Verdict, forget_side, kept_side, reasons


def verdict(after, kept=(0.9, 0.9)):
    forget = forget_side([0.9, 0.8, 0.02], after, goal=0.1, known=0.1)
    retain, unseen = (kept_side([0.9, 0.9], [value, 0.9], floor=0.9) for value in kept)
    why = reasons(forget, retain, unseen, tries=4)
    patch = {
        "path": "out/adapter",
        "bytes": 12_345,
        "weights": 100,
        "density": 0.001,
        "merge": "wagle adapter merge a b c",
    }
    attacks = {"relearning": {"returned": 1, "of": 2}, "quantization": {"returned": 0, "of": 3}}
    return Verdict(not why, why, forget, retain, unseen, attacks, patch, output_dir="out")


def test_forgotten():
    found = verdict([0.05, 0.01, 0.0])
    assert found.forgotten and found.exit_code == 0 and found.reasons == []
    assert found.forget["known"] == found.forget["gone"] == 2
    sentences = found.sentences
    assert len(sentences) == 5
    assert sentences[0].startswith("Forgotten: 2 of 2 answers are gone (from 57 % likely on average to 2.0 %")
    assert "2 of 2 that were trained on (from 90 % to 90 %)" in sentences[1]
    assert "1 of 2 after relearning" in sentences[2] and "0 of 3 in 4 bits" in sentences[2]
    assert "100 weights (0.10%)" in sentences[3] and "12.3 KB" in sentences[3]
    assert "wagle adapter merge a b c" in sentences[4]


def test_not_enough_is_forgotten():
    found = verdict([0.5, 0.01, 0.0])
    assert not found.forgotten and found.exit_code == 3
    assert "None of 4 tries met the goal within the utility floor" in found.reasons[0]
    assert found.sentences[0].startswith("Not forgotten: 1 of 2 answers are gone")
    assert "--densities" in found.sentences[4]


@pytest.mark.parametrize(("kept", "name"), [((0.1, 0.9), "retain"), ((0.9, 0.1), "unseen")])
def test_too_much_is_lost(kept, name):
    found = verdict([0.0, 0.0, 0.0], kept)
    assert found.exit_code == 3
    assert found.reasons == [
        f"The {name} answers fell to 56 % of their probability, below the floor of 90 %.",
    ]


def test_it_survives_its_file():
    found = verdict([0.05, 0.01, 0.0])
    assert Verdict.from_dict(found.as_dict()) == found
