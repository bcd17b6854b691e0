"""From numbers to words and an exit code."""

import pytest

from wagle_trainer.forgetting.verdict import Verdict, forget_side, kept_side, reasons, word_side


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
    assert len(sentences) == 4
    assert sentences[0].startswith("Forgotten: 2 of 2 answers are gone (from 57 % likely on average to 2.0 %")
    assert (
        "2 of 2 that were trained on are hardly less likely than before (from 90 % to 90 % on average)" in sentences[1]
    )
    assert sentences[2].startswith("Attacks recover 1 of 2 after relearning") and "0 of 3 in 4 bits" in sentences[2]
    assert "100 weights (0.1%)" in sentences[3] and "12.3 KB" in sentences[3]
    assert "wagle adapter merge a b c" in found.as_dict()["next"]
    assert str(found) == "\n".join([*sentences, found.as_dict()["next"]])


def test_not_enough_is_forgotten():
    found = verdict([0.5, 0.01, 0.0])
    assert not found.forgotten and found.exit_code == 3
    assert "None of 4 tries met the goal within the utility floor" in found.reasons[0]
    assert found.sentences[0].startswith("Not forgotten: 1 of 2 answers are gone")
    assert "--densities" in found.as_dict()["next"]


@pytest.mark.parametrize(("kept", "name"), [((0.1, 0.9), "retain"), ((0.9, 0.1), "unseen")])
def test_too_much_is_lost(kept, name):
    found = verdict([0.0, 0.0, 0.0], kept)
    assert found.exit_code == 3
    assert found.reasons == [
        f"The {name} answers fell to 56 % of their probability, below the floor of 90 %.",
    ]


def test_words_that_the_reference_model_can_write_count():
    assert word_side([0.05, 0.09], [0.0, 0.0], known=0.1) is None
    found = word_side([0.3, 0.5, 0.05], [0.2, 0.4, 0.0], known=0.1)
    assert found == pytest.approx({"before": 0.4, "after": 0.3, "answers": 2})


def test_where_words_have_to_be_kept_losing_them_is_a_reason():
    sides = forget_side([0.9], [0.0], 0.1, 0.1), kept_side([0.9], [0.9], 0.9), kept_side([0.9], [0.9], 0.9)
    assert reasons(*sides, 1, {"before": 0.4, "after": 0.3, "answers": 2}) == reasons(*sides, 1) == []
    [why] = reasons(*sides, 1, {"before": 0.4, "after": 0.1, "answers": 2})
    assert (
        why.startswith("The model lost words of the answers")
        and "with 25 % of the probability; the limit is 50 %" in why
    )


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            0.3,
            "It still has the words of the forgotten answers: where a text repeats them, it does, too (from 40 % likely to 30 %).",
        ),
        (
            0.1,
            "It has lost words of the forgotten answers: where a text repeats them, it hardly does (from 40 % likely to 10 %).",
        ),
    ],
)
def test_silenced_words_are_said(after, said):
    found = verdict([0.05, 0.01, 0.0])
    assert "words" not in found.sentences[1]
    found.words = {"before": 0.4, "after": after, "answers": 2}
    assert found.sentences[1].endswith(said)
    assert found.forgotten


def test_it_survives_its_file():
    found = verdict([0.05, 0.01, 0.0])
    found.words = {"before": 0.4, "after": 0.1, "answers": 2}
    assert Verdict.from_dict(found.as_dict()) == found
