import json
import statistics

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers.processors import TemplateProcessing

from wagle_trainer.evaluation import evaluate_muse, get_suite, load_results, save_results
from wagle_trainer.reporting import example_interval

VERBMEM, KNOWMEM = 8, 5
NUMBERS = ("forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "mia_min_k")


@pytest.fixture(scope="module")
def sets(muse_rows):
    return {
        "verbmem_forget": muse_rows["verbmem/forget"],
        "knowmem_forget": muse_rows["knowmem/forget_qa"],
        "knowmem_retain": muse_rows["knowmem/retain_qa"],
        "privleak_forget": muse_rows["privleak/forget"],
        "privleak_holdout": muse_rows["privleak/holdout"],
        "knowmem_forget_icl": muse_rows["knowmem/forget_qa_icl"],
        "knowmem_retain_icl": muse_rows["knowmem/retain_qa_icl"],
    }


@pytest.fixture(scope="module")
def words(make_word_tokenizer):
    return make_word_tokenizer()


def evaluate(model, words, sets, **options):
    return evaluate_muse(model, words, sets, verbmem_tokens=VERBMEM, knowmem_tokens=KNOWMEM, progress=False, **options)


@pytest.fixture(scope="module")
def results(muse_model, words, sets):
    return evaluate(muse_model, words, sets, batch_size=4)


def plain(model, words, sets) -> dict[str, float]:
    """The same numbers from the paper's definitions, one text at a time."""
    scorer = RougeScorer(["rougeL"], use_stemmer=False)

    def say(prompt, length):
        ids = torch.tensor([words(prompt)["input_ids"]])
        output = model.generate(ids, do_sample=False, max_new_tokens=length, pad_token_id=0)[0, ids.shape[1] :]
        return words.decode(output, skip_special_tokens=True)

    def verbmem(row):
        return scorer.score(" ".join(row["gt"].split()[:VERBMEM]), say(row["prompt"], VERBMEM))["rougeL"].fmeasure

    def knowmem(row, examples):
        shown = "".join(f"Question: {each['question']}\nAnswer: {each['answer']}\n\n" for each in examples)
        said = say(f"{shown}Question: {row['question']}\nAnswer: ", KNOWMEM)
        return scorer.score(row["answer"], said)["rougeL"].fmeasure

    def min_40(row):
        ids = torch.tensor(words(row["text"])["input_ids"])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)
        found = sorted(log_probs[range(len(ids) - 1), ids[1:]].tolist())
        return -statistics.mean(found[: int(0.4 * len(found))])

    inside, outside = ([min_40(row) for row in sets[f"privleak_{name}"]] for name in ("forget", "holdout"))
    pairs = [(one, other) for one in inside for other in outside]
    return {
        "forget_verbmem_ROUGE": statistics.mean(map(verbmem, sets["verbmem_forget"])),
        **{
            f"{part}_knowmem_ROUGE": statistics.mean(
                knowmem(row, sets.get(f"knowmem_{part}_icl", [])) for row in sets[f"knowmem_{part}"]
            )
            for part in ("forget", "retain")
        },
        "mia_min_k": statistics.mean(one < other for one, other in pairs),
    }


def test_equals_the_definitions_one_text_at_a_time(results, muse_model, words, sets):
    expected = plain(muse_model, words, sets)
    assert all(0 < value < 1 for value in expected.values()), expected  # else the comparison would say little
    assert {name: results[name] for name in NUMBERS} == pytest.approx(expected, abs=1e-5)


def test_memorisation_and_attacks(results, muse_model, words, sets):
    strength, exact = [], []
    for row in sets["verbmem_forget"]:
        start = len(words(row["prompt"])["input_ids"])
        ids = words(f"{row['prompt']} {row['gt']}")["input_ids"][: start + VERBMEM]
        with torch.no_grad():
            right = (
                muse_model(torch.tensor([ids])).logits[0].argmax(-1)[start - 1 : -1] == torch.tensor(ids[start:])
            ).tolist()
        exact.append(statistics.mean(right))
        strength.append(1 - min(k for k in range(len(right) + 1) if all(right[k:])) / len(right))
    assert results["exact_memorization"] == pytest.approx(statistics.mean(exact))
    assert results["extraction_strength"] == pytest.approx(statistics.mean(strength))
    assert 0 < statistics.mean(exact) < 1
    losses = {}
    for name in ("forget", "holdout"):
        losses[name] = []
        for row in sets[f"privleak_{name}"]:
            ids = torch.tensor([words(row["text"])["input_ids"]])
            with torch.no_grad():
                losses[name].append(muse_model(ids, labels=ids).loss.item())
        assert results["per_example"][f"privleak_{name}"]["mia_loss"] == pytest.approx(losses[name], rel=1e-4)
    pairs = [(one, other) for one in losses["forget"] for other in losses["holdout"]]
    assert results["mia_loss"] == statistics.mean(one < other for one, other in pairs)
    assert {"mia_zlib", "mia_min_k", "mia_min_k_plus_plus"} < set(results)
    again = evaluate(muse_model, words, sets, reference=results, gradient_norm=True)
    for name in ("forget", "holdout"):  # compared with itself
        assert again["per_example"][f"privleak_{name}"]["mia_reference"] == pytest.approx([0.0] * 3, abs=1e-5)
    assert 0 <= again["mia_reference"] <= 1
    assert 0 <= again["mia_gradnorm"] <= 1


def test_what_a_tokenizer_puts_before_a_text_counts_among_the_tokens(muse_model, make_word_tokenizer, sets):
    words = make_word_tokenizer()
    plain = evaluate(muse_model, words, sets)["per_example"]["verbmem_forget"]["answer"]
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", words.unk_token_id)]
    )
    shorter = evaluate(muse_model, words, sets)["per_example"]["verbmem_forget"]["answer"]
    assert shorter == [" ".join(text.split()[: VERBMEM - 1]) for text in plain]


def test_without_examples(muse_model, words, sets):
    bare = {name: rows for name, rows in sets.items() if not name.endswith("_icl")}
    found = evaluate(muse_model, words, bare)
    assert {name: found[name] for name in NUMBERS} == pytest.approx(plain(muse_model, words, bare), abs=1e-5)
    assert found["settings"]["few_shot"] == {"knowmem_forget": 0, "knowmem_retain": 0}


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_nothing(results, muse_model, words, sets, batch_size):
    again = evaluate(muse_model, words, sets, batch_size=batch_size)
    assert {name: again[name] for name in NUMBERS} == pytest.approx({name: results[name] for name in NUMBERS})
    for name in ("verbmem_forget", "knowmem_forget", "knowmem_retain"):
        assert again["per_example"][name]["generation"] == results["per_example"][name]["generation"]


def test_an_answer_ends_where_the_next_question_begins(muse_model, words, sets, monkeypatch):
    asked = []

    def generate(model, tokenizer, prompts, ends=(), **_):
        asked.append((len(prompts), ends))
        return ["w1"] * len(prompts)

    monkeypatch.setattr("wagle_trainer.evaluation.generation.generate_greedy", generate)
    evaluate(muse_model, words, sets)
    ends = {
        "verbmem_forget": (),
        **dict.fromkeys(("knowmem_forget", "knowmem_retain"), ("\n\n", "\nQuestion", "Question:")),
    }
    assert asked == [(len(sets[name]), marks) for name, marks in ends.items()]


def test_privacy_leakage_needs_a_retrained_model(results, muse_model, words, sets, tmp_path):
    assert "privleak" not in results
    assert "train a model like this one without the forget set" in results["settings"]["missing"]["privleak"]
    reference = json.loads(json.dumps(results))
    reference["mia_min_k"] = 0.6
    save_results(reference, tmp_path / "retrained.json")
    found = evaluate(muse_model, words, sets, reference=tmp_path / "retrained.json")
    papers, retrained = 1 - results["mia_min_k"], 1 - 0.6  # the paper's AUC is that of the forget set being the others
    assert found["privleak"] == pytest.approx((papers - retrained) / retrained * 100)
    assert evaluate(muse_model, words, sets, reference=results)["privleak"] == 0


def test_a_reference_that_does_not_fit_is_refused(results, muse_model, words, sets):
    with pytest.raises(ValueError, match="must be what evaluate_muse returned"):
        evaluate(muse_model, words, sets, reference={"forget_quality": 1.0})
    with pytest.raises(ValueError, match="with another min_k or on other privleak sets"):
        evaluate(muse_model, words, sets, reference=results, min_k=0.2)
    with pytest.raises(ValueError, match="reference_auc is 1"):
        evaluate(muse_model, words, sets, reference={**results, "mia_min_k": 1.0})
    with pytest.raises(ValueError, match=r"min_k must be in \(0, 1\], not 0"):
        evaluate(muse_model, words, sets, min_k=0)
    fewer = {**sets, "privleak_holdout": sets["privleak_holdout"][:2]}
    with pytest.raises(ValueError, match="with another min_k or on other privleak sets"):
        evaluate(muse_model, words, fewer, reference=results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sets: sets.pop("verbmem_forget"), "needs the set 'verbmem_forget'; given are knowmem_forget"),
        (lambda sets: sets.update(knowmem_retain=[]), "set 'knowmem_retain' is empty"),
        (lambda sets: sets.update(privleak_holdout=[{"text": "w1 w2"}, {"text": ""}]), "no 'text' in row 1"),
        (lambda sets: sets.update(knowmem_forget_icl=[{"question": "w1"}]), "'knowmem_forget_icl' has no 'answer'"),
    ],
)
def test_missing_data_is_named(muse_model, words, sets, change, message):
    broken = dict(sets)
    change(broken)
    with pytest.raises(ValueError, match=message):
        evaluate(muse_model, words, broken)


def test_by_name_from_a_folder(results, muse_model, words, muse_folder, tmp_path):
    suite = get_suite("muse")
    found = suite.evaluate(
        muse_model,
        words,
        suite.load(str(muse_folder)),
        batch_size=4,
        verbmem_tokens=VERBMEM,
        knowmem_tokens=KNOWMEM,
        reference=results,
        progress=False,
    )
    assert {name: found[name] for name in NUMBERS} == {name: results[name] for name in NUMBERS}
    for metric in {*suite.headline, *suite.forget_metrics, *suite.utility_metrics}:
        assert isinstance(found[metric], float), metric
        if metric != "privleak":  # which is of the reference's examples, too
            assert example_interval(found, metric).low is not None
    save_results(found, tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == found
