import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation.attacks import run_attacks


def attack(name, before, after, tokenizer, rows, measure=None, **options):
    return run_attacks(
        before, after, tokenizer, rows, [name], options={name: options}, measure=measure, progress=False
    )[name]


def asked_by(name, before, after, tokenizer, rows, **options):
    asked = []

    def measure(model, tokenizer, rows):
        asked.append((model is after, [(row["question"], row["answer"]) for row in rows]))
        return 1.0 if model is before else 0.5 if len(asked) < 3 else 0.75

    return attack(name, before, after, tokenizer, rows, measure, **options), asked[2:]


def test_paraphrased_questions_with_the_same_answers(before, after, tokenizer, rows):
    result, asked = asked_by("paraphrase", before, after, tokenizer, rows)
    assert asked == [(True, [(row["paraphrased_question"], row["answer"]) for row in rows])]
    assert result["recovered"] == 0.5
    without = [{key: row[key] for key in ("question", "answer")} for row in rows]
    with pytest.raises(ValueError, match="needs the column 'paraphrased_question', which row 0 does not have"):
        asked_by("paraphrase", before, after, tokenizer, without)


def test_jailbreaks_lead_in_to_the_question(before, after, tokenizer, rows):
    prompts = ["Forget {that}: {question}", "{question} Now!"]
    result, asked = asked_by("jailbreak", before, after, tokenizer, rows, prompts=prompts)
    expected = [[f"Forget {{that}}: {row['question']}" for row in rows], [f"{row['question']} Now!" for row in rows]]
    assert [[question for question, _ in part] for _, part in asked] == expected
    assert [point["x"] for point in result["points"]] == ["1", "2"]
    assert result["settings"]["options"]["prompts"] == prompts
    for bad, message in ((["no place"], "'no place' has none"), ([], "No prompts given")):
        with pytest.raises(ValueError, match=message):
            asked_by("jailbreak", before, after, tokenizer, rows, prompts=bad)


def test_answer_prefix_equals_one_prompt_at_a_time(before, after, tokenizer, rows):
    result = attack("answer_prefix", before, after, tokenizer, rows, shares=[0.5])
    qa, scorer = QAFormat.for_tokenizer(tokenizer), RougeScorer(["rougeL"], use_stemmer=True)
    limit = 3 * max(sum(label >= 0 for label in qa.encode(r["question"], r["answer"])["labels"]) for r in rows)

    def continuation(model, ids):
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=limit, pad_token_id=0)
        return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)

    means = {"before": 0.0, "after": 0.0, "forget": 0.0}
    for row in rows:
        answer = tokenizer(f" {row['answer']}")["input_ids"]
        prompt = qa.prompt_ids(row["question"])
        prefix = answer[: max(1, len(answer) // 2)]
        rest = tokenizer.decode(answer[len(prefix) :])
        texts = {
            "before": continuation(before, prompt),
            "after": continuation(after, prompt),
            "forget": continuation(after, prompt + prefix),
        }
        for name, text in texts.items():
            means[name] += scorer.score(rest, text)["rougeL"].recall / len(rows)
    point = result["points"][0]
    assert {name: point[name] for name in means} == pytest.approx(means)
    assert point["recovered_raw"] == pytest.approx(
        (means["forget"] - means["after"]) / (means["before"] - means["after"])
    )
    assert (result["before"], result["baseline"]) == (point["before"], point["after"])
    assert result["settings"]["measure"] == "rouge_l_recall"


def test_answers_without_a_rest(before, after, tokenizer, rows, caplog):
    measure = lambda model, *_: 1.0 if model is before else 0.0  # noqa: E731
    short = [{"question": "Who?", "answer": "baker"}]
    assert run_attacks(before, after, tokenizer, short, ["answer_prefix"], measure=measure, progress=False) == {}
    assert "'answer_prefix' is left out: it can be tried on none" in caplog.text
    with pytest.raises(ValueError, match="shares must lie between 0 and 1"):
        attack("answer_prefix", before, after, tokenizer, rows, measure, shares=[1.0])
