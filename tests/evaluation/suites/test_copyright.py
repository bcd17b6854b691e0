import copy
import json
import logging
import math
import statistics

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from wagle_trainer.evaluation import evaluate_copyright, get_suite, load_results, save_results
from wagle_trainer.reporting import example_interval

PROMPT, CONTINUATION = 6, 8


@pytest.fixture(scope="module")
def sets(muse_rows):
    """Of the seen ones the first is known; the second goes on otherwise after a while; the third was never seen."""
    known, changed, unknown = (row["text"].split() for row in muse_rows["privleak/forget"])
    changed[PROMPT + 3] = "w0" if changed[PROMPT + 3] != "w0" else "w1"
    seen = [{"text": " ".join(text)} for text in (known, changed, unknown)]
    return {"seen": seen, "unseen": muse_rows["privleak/holdout"]}


@pytest.fixture(scope="module")
def words(make_word_tokenizer):
    return make_word_tokenizer()


def evaluate(model, words, sets, **options):
    options = {"prompt_tokens": PROMPT, "continuation_tokens": CONTINUATION, "progress": False} | options
    return evaluate_copyright(model, words, sets, **options)


@pytest.fixture(scope="module")
def results(muse_model, words, sets):
    return evaluate(muse_model, words, sets, batch_size=4)


def plain(model, words, rows) -> dict[str, float]:
    """The same numbers from what the model says after each prompt on its own."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouges, prefixes, log_probs = [], [], []
    for row in rows:
        ids = words(row["text"])["input_ids"][: PROMPT + CONTINUATION]
        true = ids[PROMPT:]
        output = model.generate(
            torch.tensor([ids[:PROMPT]]), do_sample=False, max_new_tokens=CONTINUATION, pad_token_id=0
        )
        said = output[0, PROMPT:].tolist()
        rouges.append(scorer.score(words.decode(true), words.decode(said, skip_special_tokens=True))["rougeL"].recall)
        same = [one == other for one, other in zip(said, true, strict=False)]
        prefixes.append(same.index(False) if False in same else len(same))
        with torch.no_grad():
            logits = torch.log_softmax(model(torch.tensor([ids])).logits[0, PROMPT - 1 : -1], -1)
        log_probs += logits[range(CONTINUATION), true].tolist()
    return {
        "ROUGE": statistics.mean(rouges),
        "exact_match": statistics.mean(prefix == CONTINUATION for prefix in prefixes),
        "common_prefix": statistics.mean(prefixes) / CONTINUATION,
        "perplexity": math.exp(-statistics.mean(log_probs)),
    }


def test_equals_one_passage_at_a_time(results, muse_model, words, sets):
    seen = plain(muse_model, words, sets["seen"])
    assert 0 < seen["exact_match"] < seen["common_prefix"] < 1, seen  # else the comparison would say little
    for name in ("seen", "unseen"):
        expected = {f"{name}_{key}": value for key, value in plain(muse_model, words, sets[name]).items()}
        assert {key: results[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert results["seen_perplexity"] < results["unseen_perplexity"]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_nothing(results, muse_model, words, sets, batch_size):
    again = evaluate(muse_model, words, sets, batch_size=batch_size)
    for key, value in results.items():
        if isinstance(value, float):
            assert again[key] == pytest.approx(value, rel=1e-5)
    assert again["per_example"]["seen"]["generation"] == results["per_example"]["seen"]["generation"]


def test_perplexity_of_passages_that_a_model_finds_impossible(muse_model, words, sets, tmp_path):
    """As after too much gradient ascent: the number is still one, and JSON holds it."""
    broken = copy.deepcopy(muse_model)
    with torch.no_grad():
        broken.lm_head.weight.mul_(1e4)
    found = evaluate(broken, words, sets)
    assert statistics.mean(found["per_example"]["unseen"]["answer_log_prob"]) < -710
    assert 1e308 < found["unseen_perplexity"] < math.inf
    save_results(found, tmp_path / "results.json")


def test_passages_that_are_too_short_are_left_out(results, muse_model, words, sets, caplog):
    mixed = {**sets, "seen": [{"text": "w1 w2 w3"}, *sets["seen"]]}
    with caplog.at_level(logging.WARNING):
        found = evaluate(muse_model, words, mixed)
    assert "1 of 4 passages of the set 'seen' are left out: they have fewer than 14 tokens" in caplog.text
    assert found["per_example"]["seen"]["row"] == [1, 2, 3]
    assert found["seen_ROUGE"] == results["seen_ROUGE"]
    assert found["settings"]["examples"] == {"seen": 3, "unseen": 3}
    with pytest.raises(ValueError, match="No passage of the evaluation set 'unseen' has the 14 tokens.*longest has 3"):
        evaluate(muse_model, words, {**sets, "unseen": [{"text": "w1 w2 w3"}]})


@pytest.mark.parametrize("name", ["prompt_tokens", "continuation_tokens"])
def test_tokens_below_one(muse_model, words, sets, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        evaluate(muse_model, words, sets, **{name: 0})


def test_missing_data_is_named(muse_model, words, sets):
    with pytest.raises(ValueError, match="needs the set 'unseen'; given are seen"):
        evaluate(muse_model, words, {"seen": sets["seen"]})


def test_by_name_from_folders(results, muse_model, words, sets, muse_folder, tmp_path):
    suite = get_suite("copyright")
    for name, rows in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = {"prompt_tokens": PROMPT, "continuation_tokens": CONTINUATION, "progress": False}
    found = suite.evaluate(muse_model, words, suite.load(str(tmp_path)), batch_size=4, **options)
    assert found == results
    of_muse = suite.load(str(muse_folder), config="raw", seen="forget", unseen="holdout")
    assert of_muse["unseen"].to_list() == sets["unseen"]
    for metric in {*suite.headline, *suite.forget_metrics, *suite.utility_metrics} - {"general_perplexity"}:
        assert isinstance(found[metric], float), metric
        assert example_interval(found, metric).low is not None
    save_results(found, tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == found
    assert len(suite.load(str(tmp_path), limit=1)["seen"]) == 1
    with pytest.raises(FileNotFoundError, match=r"looked for raw/lost\.json"):
        suite.load(str(muse_folder), config="raw", seen="lost")


def test_perplexity_of_general_text(results, muse_model, words, sets):
    """One text at a time: every token but the first, and every text counts alike."""
    texts = [row["text"] for row in sets["unseen"]]
    means = []
    for text in texts:
        ids = torch.tensor([words(text)["input_ids"]])
        with torch.no_grad():
            log_probs = muse_model(ids).logits[0, :-1].log_softmax(-1)
        means.append(float(log_probs.gather(1, ids[0, 1:, None]).mean()))
    found = evaluate(muse_model, words, {**sets, "general": [*sets["unseen"], {"text": "w1"}]})
    assert found["general_perplexity"] == pytest.approx(math.exp(-statistics.mean(means)), rel=1e-4)
    assert found["per_example"]["general"]["row"] == [0, 1, 2]
    assert found["settings"]["missing"] == {}
    assert {name: value for name, value in found.items() if name in results and isinstance(value, float)} == {
        name: value for name, value in results.items() if isinstance(value, float)
    }
    assert "'general'" in results["settings"]["missing"]["general_perplexity"]
    with pytest.raises(ValueError, match="No text of the evaluation set 'general' has two tokens"):
        evaluate(muse_model, words, {**sets, "general": [{"text": "w1"}]})
