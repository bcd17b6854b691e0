import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers.utils import logging

from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation.attacks import (
    Point,
    describe_attacks,
    forget_knowledge,
    list_attacks,
    recovery_rate,
    register_attack,
    run_attacks,
)
from wagle_trainer.evaluation.attacks.attack import _attacks

finite = st.floats(-10, 10)


@pytest.fixture
def simple(before):
    """A measure that needs no forward pass."""
    return lambda model, *_: 0.9 if model is before else 0.1


@given(finite, finite, finite)
def test_recovery_rate(before, after, attacked):
    if not after < before:
        with pytest.raises(ValueError, match="Nothing was forgotten"):
            recovery_rate(before, after, attacked)
        return
    share = recovery_rate(before, after, attacked)
    assert share == (attacked - after) / (before - after)
    assert recovery_rate(before, after, before) == 1
    assert recovery_rate(before, after, after) == 0


def test_share_of_numbers_that_are_none():
    with pytest.raises(ValueError, match=r"knows \(attacked\) is nan"):
        recovery_rate(1.0, 0.0, math.nan)


def test_forget_knowledge_by_hand(before, tokenizer, rows, log_probs_by_hand):
    qa, scorer = QAFormat.for_tokenizer(tokenizer), RougeScorer(["rougeL"], use_stemmer=True)
    probability = rouge = 0.0
    for row in rows:
        example = qa.encode(row["question"], row["answer"])
        with torch.no_grad():
            probability += log_probs_by_hand(before, example["input_ids"], example["labels"]).mean().exp().item()
        ids = qa.prompt_ids(row["question"])
        out = before.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=60, pad_token_id=0)
        text = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        rouge += scorer.score(row["answer"], text)["rougeL"].recall
    expected = {"probability": probability / len(rows), "rouge_l_recall": rouge / len(rows)}
    assert forget_knowledge(before, tokenizer, rows, batch_size=3) == pytest.approx(expected, abs=1e-5)
    swapped = forget_knowledge(before, tokenizer, rows, only=("rouge_l_recall", "probability"))
    assert list(swapped) == ["rouge_l_recall", "probability"]
    for only in (("perplexity",), ()):
        with pytest.raises(ValueError, match="Unknown measure"):
            forget_knowledge(before, tokenizer, rows, only=only)


def test_results_follow_the_contract(before, after, tokenizer, rows, retain_rows, simple):
    options = {"relearning": {"steps": [1]}, "relearning_unrelated": {"data": retain_rows, "steps": [1]}}
    results = run_attacks(before, after, tokenizer, rows, options=options, measure=simple, progress=False)
    assert list(results) == list_attacks()
    assert results == json.loads(json.dumps(results, allow_nan=False))
    for name, result in results.items():
        assert result["attack"] == name
        assert result["points"]
        assert result["recovered"] == max(point["recovered"] for point in result["points"])
        for point in result["points"]:
            assert {"x", "forget", "recovered", "recovered_raw", "before", "after"} <= set(point)
            assert point["recovered"] == min(1, max(0, point["recovered_raw"]))
            share = (point["forget"] - point["after"]) / (point["before"] - point["after"])
            assert point["recovered_raw"] == pytest.approx(share)
        assert result["settings"]["seed"] == 42
        assert result["settings"]["examples"] == len(rows)


def test_a_format_of_ones_own(before, after, tokenizer, rows):
    """Measure and attacks write questions in it."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    formats = [QAFormat.for_tokenizer(chat, "chat", system_prompt=text) for text in (None, "Which author")]
    attack = ["removal"], {"removal": {"shares": [0.5]}}
    known = [
        run_attacks(before, after, chat, rows, attack[0], options=attack[1], qa_format=qa, progress=False)
        for qa in formats
    ]
    expected = [forget_knowledge(before, chat, rows, qa_format=qa)["probability"] for qa in formats]
    assert [found["removal"]["before"] for found in known] == pytest.approx(expected)
    assert expected[0] != pytest.approx(expected[1])


def test_by_default_what_is_possible_runs(before, after, tokenizer, rows, simple):
    plain = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    results = run_attacks(before, after, tokenizer, plain, measure=simple, progress=False)
    assert sorted({*list_attacks()} - {*results}) == ["paraphrase", "relearning_unrelated"]


def test_a_second_measure_that_did_not_fall_has_no_share(before, after, tokenizer, rows):
    def measure(model, tokenizer, rows):
        return {"first": 0.9 if model is before else 0.1, "second": 0.1 if model is before else 0.2}

    [point] = run_attacks(before, after, tokenizer, rows, ["paraphrase"], measure=measure, progress=False)[
        "paraphrase"
    ]["points"]
    assert point["measures"] == {"first": 0.1, "second": 0.2}
    assert point["recovered_by_measure"] == {"first": 0.0, "second": None}


def test_an_attack_of_ones_own(before, after, tokenizer, rows, simple):
    @register_attack("louder", unit="exclamation marks")
    def louder(target, *, marks=(1, 3)):
        """Ask louder.

        More of it.
        """
        return [Point(count, {"loudness": count / 10}, {"loudness": 0.3}, {"loudness": 0.1}) for count in marks]

    try:
        assert "louder" in list_attacks()
        assert describe_attacks()["louder"] == "Ask louder."
        results = run_attacks(before, after, tokenizer, rows, ["louder"], measure=simple, progress=False)
        assert [point["recovered"] for point in results["louder"]["points"]] == pytest.approx([0.0, 1.0])
        assert results["louder"]["unit"] == "exclamation marks"
    finally:
        del _attacks._entries["louder"]


def test_results_can_be_kept_before_a_later_attack_fails(before, after, tokenizer, rows, simple):
    kept = []
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        run_attacks(
            before,
            after,
            tokenizer,
            rows,
            ["removal", "relearning"],
            options={"relearning": {"steps": [5], "learning_rate": 1e30}},
            measure=simple,
            progress=False,
            on_result=lambda results: kept.append(list(results)),
        )
    assert kept == [["removal"]]


def test_an_attack_by_whose_measure_nothing_was_forgotten_is_left_out(before, after, tokenizer, rows, simple, caplog):
    @register_attack("vain")
    def vain(target, *, strength=3):
        return [Point(strength, {"own": 0.5}, {"own": 0.2}, {"own": 0.4})]

    logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            results = run_attacks(
                before, after, tokenizer, rows, ["vain", "quantization"], measure=simple, progress=False
            )
    finally:
        logging.disable_propagation()
        del _attacks._entries["vain"]
    assert list(results) == ["quantization"]
    assert "'vain' is left out: by its own measure, own, or in the rows" in caplog.text
    assert results["quantization"]["settings"]["options"] == {"bits": [8, 4], "group_size": 64}


def test_a_point_at_which_nothing_was_forgotten_is_left_out(before, after, tokenizer, rows, simple):
    @register_attack("uneven")
    def uneven(target):
        return [Point(1, {"own": 0.5}, {"own": 0.2}, {"own": 0.4}), Point(2, {"own": 0.5}, {"own": 0.9}, {"own": 0.1})]

    try:
        result = run_attacks(before, after, tokenizer, rows, ["uneven"], measure=simple, progress=False)["uneven"]
    finally:
        del _attacks._entries["uneven"]
    assert [point["x"] for point in result["points"]] == [2]
    assert (result["before"], result["baseline"], result["recovered"]) == (0.9, 0.1, 0.5)


@pytest.mark.parametrize(
    ("knows", "little"),
    [
        ({"mine": (0.9, 0.8999)}, True),
        ({"mine": (0.9, 0.85)}, False),
        ({"mine": (2e-3, 1e-3)}, False),  # a measure of one's own may have any scale
        ({"probability": (2e-3, 1e-3)}, True),  # noise of 1e-3 is no recovery
    ],
)
def test_there_is_no_recovery_rate_where_next_to_nothing_was_forgotten(
    before, after, tokenizer, rows, caplog, knows, little
):
    [(name, (known_before, known_after))] = knows.items()
    measure = lambda model, *_: {name: known_before if model is before else known_after}  # noqa: E731
    logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            results = run_attacks(before, after, tokenizer, rows, ["removal"], measure=measure, progress=False)
    finally:
        logging.disable_propagation()
    assert ("so little was forgotten" in caplog.text) == little
    result = results["removal"]
    assert (result["recovered"] is None) == little
    assert all((point["recovered"] is None) == little for point in result["points"])
    assert (result["warning"] is not None) == little


def test_an_attack_that_leaves_less_than_unlearning_recovers_nothing(before, after, tokenizer, rows):
    weights = next(after.parameters()).detach().clone()

    def measure(model, *_):
        return 0.9 if model is before else 0.1 if torch.equal(next(model.parameters()), weights) else 0.02

    options = {"removal": {"shares": [1.0]}}
    result = run_attacks(
        before, after, tokenizer, rows, ["removal"], options=options, measure=measure, progress=False
    )["removal"]
    [point] = result["points"]
    assert (point["recovered"], result["recovered"]) == (0, 0)
    assert point["recovered_raw"] == pytest.approx(-0.1)


def test_every_attack_describes_itself():
    assert all(len(text) > 20 for text in describe_attacks().values())


@pytest.mark.parametrize(
    ("attacks", "options", "message"),
    [
        (["quantisation"], None, "Unknown attack 'quantisation'. Did you mean 'quantization'"),
        (["quantization"], {"quantization": {"bit": 8}}, "has no option bit. It has: bits, group_size"),
        (["relearning_unrelated"], None, "needs data: pass options="),
        (["quantization"], {"removal": {}}, "options for removal, but the attacks are quantization"),
        # Out of range, which the attacks say before anything is measured.
        (["removal", "quantization"], {"quantization": {"bits": [9]}}, "bits must be from 2 to 8"),
        (["removal", "relearning"], {"relearning": {"share": 1.0}}, "share must lie between 0 and 1"),
        (["sampling"], {"sampling": {"k": [4], "samples": 3}}, "needs at least as many samples"),
        (["sampling"], {"sampling": {"max_new_tokens": 0}}, "max_new_tokens must be positive"),
        (["answer_prefix"], {"answer_prefix": {"shares": [1.5]}}, "shares must lie between 0 and 1"),
        (["jailbreak"], {"jailbreak": {"prompts": ["Please!"]}}, "needs the place"),
        (["removal"], {"removal": {"shares": []}}, "shares must be in"),
    ],
)
def test_attacks_and_options_that_do_not_exist(before, after, tokenizer, rows, simple, attacks, options, message):
    calls = []
    measure = lambda *given: calls.append(given) or simple(*given)  # noqa: E731
    with pytest.raises(ValueError, match=message):
        run_attacks(before, after, tokenizer, rows, attacks, options=options, measure=measure, progress=False)
    assert not calls


def test_nothing_to_measure(before, after, tokenizer, rows, simple):
    def run(one, other, rows=rows, measure=simple):
        run_attacks(one, other, tokenizer, rows, ["quantization"], measure=measure, progress=False)

    with pytest.raises(ValueError, match="are the same object"):
        run(before, before)
    with pytest.raises(ValueError, match="Nothing was forgotten: the unlearned model knows 0.9"):
        run(after, before)
    with pytest.raises(ValueError, match="Nothing was forgotten"):
        run(before, after, measure=lambda *_: 0.5)
    with pytest.raises(ValueError, match="evaluation set 'forget' is empty"):
        run(before, after, rows=[])
    with pytest.raises(ValueError, match="set 'forget' has no 'answer' in row 1"):
        run(before, after, rows=[rows[0], {"question": "Who?"}])
    with pytest.raises(ValueError, match="The measure returned nothing"):
        run(before, after, measure=lambda *_: {})
