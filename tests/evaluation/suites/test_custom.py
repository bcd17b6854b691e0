import math
from statistics import fmean

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from wagle_trainer.evaluation import evaluate_custom, get_suite, results_table
from wagle_trainer.reporting import example_interval, write_report

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture(scope="module")
def model(make_llama):
    return make_llama(3).eval()


@pytest.fixture
def words(make_word_tokenizer):
    return make_word_tokenizer()


QUESTIONS = {
    "forget": [{"question": f"w{i} w{i + 1}", "answer": f"w{2 * i} w{i + 2} w3", "group": i // 2} for i in range(6)],
    "retain": [{"question": f"w{i} w9", "answer": f"w{i + 5}"} for i in range(4)],
    "unseen": [{"question": f"w{i} w8", "answer": f"w{i + 7} w1"} for i in range(3)],
}


def evaluate(model, words, sets, **options):
    return evaluate_custom(model, words, sets, max_new_tokens=5, progress=False, **options)


def plain(model, words, ids, start):
    """Log-probabilities of the tokens from `start` on, whether each is the likeliest, and what follows the prompt."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[start - 1 : -1]
        said = model.generate(torch.tensor([ids[:start]]), do_sample=False, max_new_tokens=5, pad_token_id=0)
    labels = torch.tensor(ids[start:])
    chosen = log_probs[range(len(labels)), labels]
    return chosen, (log_probs.argmax(-1) == labels).tolist(), words.decode(said[0, start:], skip_special_tokens=True)


def test_questions_equal_the_definitions(model, words):
    found = evaluate(model, words, QUESTIONS, batch_size=2)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name, rows in QUESTIONS.items():
        probability, exact, verbatim, rouge = [], [], [], []
        for row in rows:
            prompt = words(f"Question: {row['question']}\nAnswer:")["input_ids"]
            ids = [*prompt, *words(row["answer"])["input_ids"], words.eos_token_id]
            chosen, right, text = plain(model, words, ids, len(prompt))
            probability.append(math.exp(chosen.mean()))
            exact.append(fmean(right[:-1]))
            verbatim.append(([*right[:-1], False].index(False)) / (len(right) - 1))
            rouge.append(scorer.score(row["answer"], text)["rougeL"].recall)
        expected = {
            "Prob": fmean(probability),
            "exact_memorization": fmean(exact),
            "verbatim": fmean(verbatim),
            "ROUGE": fmean(rouge),
        }
        assert {stem: found[f"{name}_{stem}"] for stem in expected} == pytest.approx(expected, abs=1e-5)
    losses = {name: found["per_example"][name]["mia_loss"] for name in ("forget", "unseen")}
    pairs = [(one, other) for one in losses["forget"] for other in losses["unseen"]]
    assert found["mia_loss"] == pytest.approx(fmean(one < other for one, other in pairs))
    assert found["per_example"]["forget"]["group"] == [0, 0, 1, 1, 2, 2]
    assert example_interval(found, "forget_Prob").low is not None


def test_passages(model, words):
    texts = [" ".join(f"w{(3 * i + j) % 40}" for j in range(n)) for i, n in enumerate((30, 8, 5))]
    found = evaluate(
        model, words, {"forget": [{"text": text} for text in texts]}, prompt_tokens=10, continuation_tokens=6
    )
    for row, (start, end) in enumerate(((10, 16), (4, 8), (2, 5))):
        ids = words(texts[row])["input_ids"]
        chosen, _, _ = plain(model, words, ids[:end], start)
        assert found["per_example"]["forget"]["probability"][row] == pytest.approx(math.exp(chosen.mean()), rel=1e-4)
        assert found["per_example"]["forget"]["question"][row] == words.decode(ids[:start])
        assert found["per_example"]["forget"]["answer"][row] == words.decode(ids[start:end])
    assert "retain_Prob" not in found
    assert "mia_loss" not in found


def test_the_same_row_in_four_forms(model, words):
    words.chat_template = CHAT
    turns = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}]
    forms = [
        {"question": "w1 w2", "answer": "w3 w4"},
        {"messages": turns},
        {"prompt": turns[:1], "completion": turns[1:]},
        {"messages": [*turns, {"role": "user", "content": "w5"}]},  # the last turn of the assistant counts
    ]
    found = [evaluate(model, words, {"forget": [row]}) for row in forms]
    assert len({round(result["forget_Prob"], 6) for result in found}) == 1
    several = [{"role": "system", "content": "w7"}, *turns, *turns]
    other = evaluate(model, words, {"forget": [{"messages": several}]})
    assert other["forget_Prob"] != pytest.approx(found[0]["forget_Prob"])
    assert other["per_example"]["forget"]["answer"] == ["w3 w4"]


def test_prompt_and_completion_as_text(model, words):
    [row] = rows = [{"prompt": "w1 w2 w3", "completion": " w4 w5"}]
    found = evaluate(model, words, {"forget": rows})
    ids = [*words(row["prompt"] + row["completion"])["input_ids"], words.eos_token_id]
    chosen, _, _ = plain(model, words, ids, 3)
    assert found["forget_Prob"] == pytest.approx(math.exp(chosen.mean()), rel=1e-4)


def test_files_table_and_report(model, words, tmp_path):
    for name in ("forget", "retain"):
        lines = [f'{{"question": "{row["question"]}", "answer": "{row["answer"]}"}}' for row in QUESTIONS[name]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    suite = get_suite("custom")
    data = suite.load(str(tmp_path / "forget.jsonl"), retain=str(tmp_path / "retain.jsonl"), limit=3)
    assert {name: len(rows) for name, rows in data.items()} == {"forget": 3, "retain": 3}
    results = {"before": suite.evaluate(model, words, data, max_new_tokens=3, progress=False)}
    assert results_table(results, suite.headline).splitlines()[0].split()[:2] == ["forget", "forget"]
    page = write_report({**results, "after": results["before"]}, tmp_path / "report", suite="custom")
    assert "forget: 3 rows" in page.read_text()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"retain": []}, "The sets are 'forget' and"),
        ({"forget": [], "other": []}, "given are forget, other"),
        ({"forget": []}, "The forget set is empty"),
        ({"forget": [{"question": "w1", "answer": ""}]}, "Row 0 of the forget set has none of: question and answer"),
        ({"forget": [{"messages": [{"role": "user", "content": "w1"}]}]}, "Row 0 .* no turn of the assistant"),
        ({"forget": [{"text": "w1"}]}, "a passage of 1 tokens: it takes at least two"),
    ],
)
def test_what_cannot_be_measured_is_named(model, words, sets, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, words, sets)


def test_a_row_that_a_template_refuses_is_named(model, words):
    words.chat_template = "{{ raise_exception('roles must alternate') }}"
    rows = [{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}]
    with pytest.raises(ValueError, match="Row 0 of the forget set cannot be written with this template: roles must"):
        evaluate(model, words, {"forget": rows})
