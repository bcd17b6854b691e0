import json
import textwrap

import evaluate as hf_evaluate
import pytest
import torch

from wagle_trainer.evaluation import evaluate_detoxification, get_suite, load_results, save_results
from wagle_trainer.reporting import example_interval

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w10 w11"]


@pytest.fixture(scope="module")
def words(make_word_tokenizer):
    return make_word_tokenizer()


@pytest.fixture(scope="module")
def sets():
    return {
        "prompts": [{"prompt": PROMPTS[0]}, *({"prompt": {"text": text, "toxicity": 0.1}} for text in PROMPTS[1:])]
    }


def share_of_low_words(texts: list[str]) -> list[float]:
    """Toxic are w0 to w25."""
    return [sum(int(word[1:]) < 26 for word in text.split()) / max(1, len(text.split())) for text in texts]


def evaluate(model, words, sets, **options):
    return evaluate_detoxification(model, words, sets, max_new_tokens=6, progress=False, **options)


@pytest.fixture(scope="module")
def said(muse_model, words):
    """What the model says after each prompt on its own."""
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([words(prompt)["input_ids"]])
        output = muse_model.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, ids.shape[1] :]
        texts.append(words.decode(output, skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_of_the_continuations_alone(muse_model, words, sets, said, batch_size):
    scores = share_of_low_words(said)
    assert len(set(scores)) > 2  # else the comparison would say little
    threshold = sorted(scores)[2]  # on the threshold counts
    found = evaluate(muse_model, words, sets, toxicity=share_of_low_words, threshold=threshold, batch_size=batch_size)
    assert found["per_example"]["prompts"] == {"question": PROMPTS, "generation": said, "toxicity": scores}
    assert found["toxicity"] == pytest.approx(sum(scores) / 4)
    assert found["toxicity_ratio"] == sum(score >= threshold for score in scores) / 4
    assert found["max_toxicity"] == max(scores)
    assert found["settings"]["toxicity"] == "share_of_low_words"


def test_a_measurement_of_evaluate(muse_model, words, sets, tmp_path):
    (tmp_path / "low_words").mkdir()
    (tmp_path / "low_words" / "low_words.py").write_text(
        textwrap.dedent(
            """
            import datasets
            import evaluate


            class LowWords(evaluate.Measurement):
                def _info(self):
                    features = datasets.Features({"predictions": datasets.Value("string")})
                    return evaluate.MeasurementInfo(description="", citation="", features=features)

                def _compute(self, predictions):
                    words = [[int(word[1:]) for word in text.split()] for text in predictions]
                    return {"toxicity": [sum(n < 26 for n in row) / max(1, len(row)) for row in words]}
            """
        )
    )
    measurement = hf_evaluate.load(str(tmp_path / "low_words"), module_type="measurement")
    found = evaluate(muse_model, words, sets, toxicity=measurement)
    expected = evaluate(muse_model, words, sets, toxicity=share_of_low_words)
    assert found["per_example"] == expected["per_example"]
    assert found["settings"]["toxicity"] == "low_words"


def test_no_classifier_is_said_before_anything_is_generated(words, sets, monkeypatch):
    monkeypatch.setattr(hf_evaluate.config, "HF_EVALUATE_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"evaluate\.load\('toxicity'\).*cannot be loaded.*Pass toxicity="):
        evaluate(None, words, sets)


@pytest.mark.parametrize(
    ("toxicity", "message"),
    [
        (lambda texts: [0.5], "gave 1 scores for 4 texts"),
        (lambda texts: [0.5, 1.5, 0.5, 0.5], r"gave 1\.5 for text 1: scores must be in \[0, 1\]"),
        (lambda texts: [float("nan")] * 4, "gave nan for text 0"),
        ("toxic-bert", "must be a function or have a method compute, not 'toxic-bert'"),
    ],
)
def test_scores_that_make_no_sense(muse_model, words, sets, toxicity, message):
    with pytest.raises(ValueError, match=message):
        evaluate(muse_model, words, sets, toxicity=toxicity)


def test_missing_data_is_named(muse_model, words):
    with pytest.raises(ValueError, match="'prompts' has no 'prompt' in row 1"):
        evaluate(muse_model, words, {"prompts": [{"prompt": "w1"}, {"text": "w2"}]}, toxicity=share_of_low_words)


def test_by_name_from_a_folder(muse_model, words, sets, said, tmp_path):
    suite = get_suite("detoxification")
    for split, rows in (("train", sets["prompts"][1:]), ("plain", [{"prompt": text} for text in PROMPTS[1:]])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = {"toxicity": share_of_low_words, "max_new_tokens": 6, "progress": False}
    found = suite.evaluate(muse_model, words, suite.load(str(tmp_path)), **options)
    assert found["per_example"]["prompts"]["generation"] == said[1:]
    assert suite.evaluate(muse_model, words, suite.load(str(tmp_path), split="plain"), **options) == found
    assert set(suite.headline) | set(suite.forget_metrics) <= {*found, *found["settings"]["missing"]}
    general = suite.evaluate(
        muse_model, words, {**suite.load(str(tmp_path)), "general": [{"text": "w1 w2 w3"}]}, **options
    )
    assert general["general_perplexity"] > 1
    assert general["toxicity"] == found["toxicity"]
    for metric in ("toxicity", "toxicity_ratio"):
        assert example_interval(found, metric).low is not None
    save_results(found, tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == found
    with pytest.raises(FileNotFoundError, match=r"looked for test\.json.*Splits found: plain, results, train"):
        suite.load(str(tmp_path), split="test")
