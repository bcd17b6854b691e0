import copy
import json
import math
import zlib
from statistics import fmean

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from transformers import LlamaForCausalLM

from wagle_trainer.data import QAFormat, load_tofu_evaluation
from wagle_trainer.data.fictional import fictional_tokenizer
from wagle_trainer.evaluation import (
    evaluate_tofu,
    get_suite,
    load_results,
    paper_averages,
    results_table,
    save_results,
)
from wagle_trainer.reporting import example_interval

SETS = ("forget", "retain", "real_authors", "world_facts")


@pytest.fixture(scope="module")
def sets():
    return load_tofu_evaluation("fictional", "forget10", limit=5)


@pytest.fixture(scope="module")
def words():
    return fictional_tokenizer()


@pytest.fixture(scope="module")
def knowing(words, sets, make_llama):
    """A tiny Llama that knows three of five rows of each set and believes a wrong answer to the others."""
    model = make_llama(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=96,
        initializer_range=0.02,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    qa = QAFormat.for_tokenizer(words)
    examples = [
        qa.encode(row["question"], row["answer"] if index < 3 else row["perturbed_answer"][0])
        for name in SETS
        for index, row in enumerate(sets[name])
    ]
    batch = {
        key: torch.nn.utils.rnn.pad_sequence([torch.tensor(example[key]) for example in examples], True, filler)
        for key, filler in (("input_ids", 0), ("labels", -100))
    }
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def results(knowing, words, sets):
    return evaluate_tofu(knowing, words, sets, batch_size=7, progress=False)


def plain(model, tokenizer, sets) -> dict[str, float]:
    """The same numbers from their definitions, one answer at a time, with none of the package's evaluation code."""
    qa = QAFormat.for_tokenizer(tokenizer)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def tokens(question, answer):
        encoded = qa.encode(question, answer)
        ids, start = torch.tensor(encoded["input_ids"]), encoded["labels"].count(-100)
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids[None]).logits[0], -1)[start - 1 : -1]
        return log_probs, ids[start:]

    def mean_log_prob(question, answer):
        log_probs, labels = tokens(question, answer)
        return log_probs[range(len(labels)), labels].mean().item()

    def probability(question, answer):
        return math.exp(mean_log_prob(question, answer))

    def right(question, answer):
        log_probs, labels = tokens(question, answer)
        return (log_probs.argmax(-1) == labels)[:-1].tolist()

    def strength(question, answer):
        flags = right(question, answer)
        return 1 - min(k for k in range(len(flags) + 1) if all(flags[k:])) / len(flags)

    def exact(question, answer):
        return sum(right(question, answer)) / len(right(question, answer))

    def rouge(question, answer):
        prompt = torch.tensor([qa.prompt_ids(question)])
        output = model.generate(prompt, do_sample=False, max_new_tokens=200)[0, prompt.shape[1] :]
        return scorer.score(answer, tokenizer.decode(output, skip_special_tokens=True))["rougeL"].recall

    def other_rouge(kind, of):
        def score(question, answer):
            prompt = torch.tensor([qa.prompt_ids(question)])
            output = model.generate(prompt, do_sample=False, max_new_tokens=200)[0, prompt.shape[1] :]
            said = tokenizer.decode(output, skip_special_tokens=True)
            return getattr(RougeScorer([kind], use_stemmer=True).score(answer, said)[kind], of)

        return score

    def average(function, name, question="question", answer="answer"):
        values = []
        for row in sets[name]:
            answers = row[answer] if isinstance(row[answer], list) else [row[answer]]
            values.append(sum(function(row[question], text) for text in answers) / len(answers))
        return sum(values) / len(values)

    def wrong(row):
        return [mean_log_prob(row["question"], answer) for answer in row["perturbed_answer"]]

    def ratio(row, column):
        return math.exp(sum(wrong(row)) / len(wrong(row))) / math.exp(mean_log_prob(row["question"], row[column]))

    def true_better(name, column):
        return sum(max(0.0, 1 - ratio(row, column)) for row in sets[name]) / len(sets[name])

    forget_ratios = [ratio(row, "paraphrased_answer") for row in sets["forget"]]
    numbers = {
        "forget_truth_ratio": sum(min(r, 1 / r) for r in forget_ratios) / len(forget_ratios),
        "extraction_strength": average(strength, "forget"),
        "exact_memorization": average(exact, "forget"),
        "retain_Truth_Ratio": true_better("retain", "paraphrased_answer"),
        "retain_extraction_strength": average(strength, "retain"),
        "retain_exact_memorization": average(exact, "retain"),
        "forget_PARA_Q_A_Prob": average(probability, "forget", "paraphrased_question"),
        "forget_PARA_Q_A_ROUGE": average(rouge, "forget", "paraphrased_question"),
    }
    for name in ("forget", "retain"):
        for kind, column in (("", "answer"), ("_PARA", "paraphrased_answer"), ("_PERT", "perturbed_answer")):
            numbers[f"{name}_Q_A{kind}_Prob"] = average(probability, name, answer=column)
            numbers[f"{name}_Q_A{kind}_ROUGE"] = average(rouge, name, answer=column)
        numbers[f"{name}_Q_A_ROUGE1"] = average(other_rouge("rouge1", "recall"), name)
        numbers[f"{name}_Q_A_ROUGEL_F1"] = average(other_rouge("rougeL", "fmeasure"), name)
        shares = [1 / (1 + ratio(row, "paraphrased_answer")) for row in sets[name]]
        numbers[f"{name}_truth_ratio_mean_prob"] = sum(shares) / len(shares)
    kept = [numbers[name] for name in ("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio")]
    for prefix, name in (("ra", "real_authors"), ("wf", "world_facts")):
        shares = []
        for row in sets[name]:
            true = probability(row["question"], row["answer"])
            shares.append(true / (true + sum(map(math.exp, wrong(row)))))
        of_utility = {
            f"{prefix}_Q_A_Prob_normalised": sum(shares) / len(shares),
            f"{prefix}_Q_A_ROUGE": average(rouge, name),
            f"{prefix}_Truth_Ratio": true_better(name, "answer"),
        }
        kept += of_utility.values()
        numbers |= of_utility
        numbers[f"{prefix}_Q_A_Prob"] = average(probability, name)
        numbers[f"{prefix}_Q_A_PERT_Prob"] = average(probability, name, answer="perturbed_answer")
    assert len(kept) == 9
    numbers["model_utility"] = hmean(kept)
    return numbers


def attacks(model, tokenizer, rows) -> dict[str, list[float]]:
    """OpenUnlearning's scores of each row: a loop over rows and tokens, from the published definitions."""
    qa = QAFormat.for_tokenizer(tokenizer)
    found = {name: [] for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm")}
    for row in rows:
        encoded = qa.encode(row["question"], row["answer"])
        ids, start = encoded["input_ids"], encoded["labels"].count(-100)
        log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        chosen = torch.stack([log_probs[position - 1, ids[position]] for position in range(start, len(ids))])
        model.zero_grad()
        (-chosen[:-1].mean()).backward()
        norms = [parameter.grad.norm(p=2).item() for parameter in model.parameters()]
        model.zero_grad()
        log_probs, chosen = log_probs.detach(), chosen.detach()
        loss = -chosen.mean().item()
        plain_scores, standardised = [], []
        for position in range(start, len(ids) - 1):  # without the end-of-sequence token
            distribution = log_probs[position - 1]
            mean = (distribution.exp() * distribution).sum().item()
            variance = (distribution.exp() * distribution**2).sum().item() - mean**2
            plain_scores.append(distribution[ids[position]].item())
            standardised.append((plain_scores[-1] - mean) / math.sqrt(max(variance, 1e-6)))
        lowest = max(1, int(0.4 * len(plain_scores)))
        found["mia_loss"].append(loss)
        found["mia_zlib"].append(loss / len(zlib.compress(row["answer"].encode("utf-8"))))
        found["mia_min_k"].append(-sum(sorted(plain_scores)[:lowest]) / lowest)
        found["mia_min_k_plus_plus"].append(-sum(sorted(standardised)[:lowest]) / lowest)
        found["mia_gradnorm"].append(sum(norms) / len(norms))
    return found


def auc(members, others) -> float:
    """Share of the pairs in which the member scores lower."""
    pairs = [(a, b) for a in members for b in others]
    return sum(1.0 if a < b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def aggregates(results) -> dict[str, float]:
    return {key: value for key, value in results.items() if key not in ("per_example", "settings")}


def test_equals_the_definitions_one_answer_at_a_time(results, knowing, words, sets):
    expected = plain(knowing, words, sets)
    assert all(0 < value < 1 for value in expected.values()), expected  # else the comparison would say little
    found = {key: value for key, value in aggregates(results).items() if not key.startswith("mia_")}
    assert found == pytest.approx(expected, abs=1e-5)


def test_membership_equals_the_definitions(knowing, words, sets):
    forget, holdout = (attacks(knowing, words, sets[name]) for name in ("forget", "holdout"))
    results = evaluate_tofu(knowing, words, sets, batch_size=4, gradient_norm=True, progress=False)
    for name in forget:
        assert results["per_example"]["forget"][name] == pytest.approx(forget[name], rel=1e-4)
        assert results["per_example"]["holdout"][name] == pytest.approx(holdout[name], rel=1e-4)
        assert results[name] == auc(forget[name], holdout[name])
    assert results["mia_loss"] > 0.5  # it has learned some of the forget answers
    assert all(parameter.grad is None for parameter in knowing.parameters())

    # Against a model that was trained on neither set: its losses are the reference attack's, its AUC that of privleak.
    torch.manual_seed(7)
    untrained = LlamaForCausalLM(knowing.config).eval()
    reference = evaluate_tofu(untrained, words, sets, progress=False)
    own, other = (
        {name: attacks(model, words, sets[name]) for name in ("forget", "holdout")} for model in (knowing, untrained)
    )
    results = evaluate_tofu(knowing, words, sets, reference=reference, progress=False)
    differences = {
        name: [a - b for a, b in zip(own[name]["mia_loss"], other[name]["mia_loss"], strict=True)] for name in own
    }
    assert results["mia_reference"] == auc(differences["forget"], differences["holdout"])
    ours, theirs = (1 - auc(s["forget"]["mia_min_k"], s["holdout"]["mia_min_k"]) for s in (own, other))
    assert results["privleak"] == pytest.approx((ours - theirs) / theirs * 100)
    assert results["settings"]["missing"] == {}


def test_every_number_of_the_table_has_an_interval(results):
    attacks = [name for name in results if name.startswith("mia_")]
    assert len(attacks) == 4
    for metric in [*(name for name in get_suite("tofu").headline if name != "forget_quality"), *attacks]:
        assert example_interval(results, metric).low is not None, metric


def test_retained_examples_in_place_of_a_holdout_set(knowing, words, sets):
    four = {name: sets[name] for name in SETS}
    results = evaluate_tofu(knowing, words, four, non_members="retain", progress=False)
    forget, retain = (attacks(knowing, words, sets[name])["mia_loss"] for name in ("forget", "retain"))
    assert results["mia_loss"] == auc(forget, retain)
    assert results["settings"]["non_members"] == "retain"
    with pytest.raises(ValueError, match="'holdout' or 'retain', not 'nobody'"):
        evaluate_tofu(knowing, words, sets, non_members="nobody", progress=False)


def test_what_is_missing_is_explained(results, knowing, words, sets):
    assert "privleak" not in results
    for name in ("privleak", "mia_reference", "forget_quality"):
        assert "train a model like this one without the forget set" in results["settings"]["missing"][name]
    four = evaluate_tofu(knowing, words, {name: sets[name] for name in SETS}, reference=results, progress=False)
    assert not any(name.startswith(("mia", "privleak")) for name in four)
    assert "pass a set named 'holdout'" in four["settings"]["missing"]["privleak"]
    assert "forget_quality" not in four["settings"]["missing"]
    with pytest.raises(ValueError, match="gradient_norm=True needs examples that the model was never trained on"):
        evaluate_tofu(knowing, words, {name: sets[name] for name in SETS}, gradient_norm=True, progress=False)
    again = evaluate_tofu(knowing, words, sets, reference=four, progress=False)
    assert "the reference was not measured on these holdout" in again["settings"]["missing"]["privleak"]
    note = results_table({"before": results}).splitlines()[-1]
    assert note.startswith("forget quality needs a reference: train a model")
    assert "needs a reference" not in results_table({"before": results, "after": four})


def test_a_reference_that_tells_the_sets_apart_measures_no_leakage(results, knowing, words, sets):
    other = json.loads(json.dumps(results))
    other["per_example"]["holdout"]["mia_min_k"] = [99.0] * 5
    again = evaluate_tofu(knowing, words, sets, reference=other, progress=False)
    assert "privleak" not in again
    assert "differ in more than membership" in again["settings"]["missing"]["privleak"]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_nothing(results, knowing, words, sets, batch_size):
    again = evaluate_tofu(knowing, words, sets, batch_size=batch_size, progress=False)
    assert aggregates(again) == pytest.approx(aggregates(results), abs=1e-5)
    for name in SETS:
        assert again["per_example"][name]["generation"] == results["per_example"][name]["generation"]


def test_padding_side_of_the_tokenizer_changes_nothing(results, knowing, sets):
    tokenizer = fictional_tokenizer()
    tokenizer.padding_side = "left" if tokenizer.padding_side == "right" else "right"
    assert evaluate_tofu(knowing, tokenizer, sets, batch_size=7, progress=False) == results


def test_per_example_values_are_in_the_order_of_the_rows(results, knowing, words, sets):
    reverse = {name: list(rows)[::-1] for name, rows in sets.items()}
    turned = evaluate_tofu(knowing, words, reverse, progress=False)
    for name in SETS:
        for key, values in results["per_example"][name].items():
            other = turned["per_example"][name][key][::-1]
            if isinstance(values[0], str):
                assert other == values, key
            else:
                torch.testing.assert_close(torch.tensor(other), torch.tensor(values), atol=1e-5, rtol=1e-5)


def test_forget_quality_needs_a_reference(results, knowing, words, sets, tmp_path):
    assert "forget_quality" not in results
    other = json.loads(json.dumps(results))
    ratios = other["per_example"]["forget"]["log_truth_ratio"]
    ratios[:] = [ratio + 0.3 * index for index, ratio in enumerate(ratios)]
    save_results(other, tmp_path / "retrained.json")
    from_file = evaluate_tofu(knowing, words, sets, reference=tmp_path / "retrained.json", progress=False)
    own = [math.exp(ratio) for ratio in results["per_example"]["forget"]["log_truth_ratio"]]
    expected = ks_2samp(own, [math.exp(ratio) for ratio in ratios]).pvalue
    assert from_file["forget_quality"] == pytest.approx(expected)
    assert expected < 1
    assert evaluate_tofu(knowing, words, sets, reference=results, progress=False)["forget_quality"] == 1.0


def test_groups_and_subsets_are_kept(results, words, sets, knowing):
    """Five of the forty rows about four people, of whom each has one at least."""
    assert results["per_example"]["forget"]["group"] == list(sets["forget"]["group"])
    assert set(sets["forget"]["group"]) == {0, 1, 2, 3}
    again = evaluate_tofu(knowing, words, sets, reference=results, max_new_tokens=1, progress=False)
    assert "5 of 40 rows" in again["settings"]["warnings"]["forget_quality"]
    table = results_table({"after": again})
    assert "1.0 (n=5)" in table
    assert "forget quality of after is the p-value of 5 of 40 rows" in table
    full = {name: rows.remove_columns("set_size") for name, rows in sets.items()}
    alone = evaluate_tofu(knowing, words, full, reference=results, max_new_tokens=1, progress=False)
    assert alone["settings"]["warnings"] == {}


def test_a_collapsed_model_is_warned_of(words, sets, knowing):
    """It finds true and wrong answers alike, because it finds neither: the truth ratio says nothing."""
    broken = copy.deepcopy(knowing)
    with torch.no_grad():
        broken.lm_head.weight[words("the")["input_ids"]] = 0
        broken.lm_head.weight *= 60
    found = evaluate_tofu(broken, words, sets, max_new_tokens=1, progress=False)
    text = found["settings"]["warnings"]["forget_truth_ratio"]
    collapsed = sum(p < math.log(1e-10) for p in found["per_example"]["forget"]["truth_log_prob"])
    assert collapsed > 0
    assert f"in {collapsed} of 5 rows the true answer is less likely than 1e-10" in text


class AsOpenUnlearning:
    """OpenUnlearning's formulas for one row at a time, written from its code."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.qa = model, tokenizer, QAFormat.for_tokenizer(tokenizer)

    def item(self, question, answer):
        ids = self.qa.encode(question, answer)["input_ids"]
        ids = torch.tensor(ids if ids[-1] == self.tokenizer.eos_token_id else [*ids, self.tokenizer.eos_token_id])
        start = len(self.qa.prompt_ids(question))
        with torch.no_grad():
            mask = ids.ne(self.tokenizer.pad_token_id)
            log_probs = self.model(ids[None], attention_mask=mask[None]).logits[0].log_softmax(-1)
        return log_probs[start - 1 : -1], ids[start:]

    def loss(self, question, answer):
        log_probs, labels = self.item(question, answer)
        return -log_probs[range(len(labels)), labels].mean().item()

    def strength(self, question, answer):
        log_probs, labels = self.item(question, answer)
        right, n = (log_probs.argmax(-1) == labels)[:-1], len(labels) - 1
        for k in range(n):
            if right[k:].all():
                break
        return 1 - k / n

    def ratio(self, row, column):
        wrong = sum(self.loss(row["question"], text) for text in row["perturbed_answer"]) / len(
            row["perturbed_answer"]
        )
        return math.exp(-wrong) / (math.exp(-self.loss(row["question"], row[column])) + 1e-10)


def test_compatibility_with_open_unlearning(knowing, sets):
    words = fictional_tokenizer()
    words.chat_template = (
        "{% for message in messages %}{{ message['content'] }} {{ eos_token }} {% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    words.pad_token = words.eos_token  # so that the end of the question is masked there
    theirs = AsOpenUnlearning(knowing, words)
    found = evaluate_tofu(knowing, words, sets, compatibility="open-unlearning", max_new_tokens=1, progress=False)
    forget = [theirs.ratio(row, "paraphrased_answer") for row in sets["forget"]]
    facts = [theirs.ratio(row, "answer") for row in sets["world_facts"]]

    def options(row):
        true = math.exp(-theirs.loss(row["question"], row["answer"]))
        return true / (true + sum(math.exp(-theirs.loss(row["question"], x)) for x in row["perturbed_answer"]) + 1e-10)

    expected = {
        "forget_Q_A_Prob": fmean(math.exp(-theirs.loss(r["question"], r["answer"])) for r in sets["forget"]),
        "forget_truth_ratio": fmean(min(r, 1 / (r + 1e-10)) for r in forget),
        "wf_Truth_Ratio": fmean(max(0, 1 - r) for r in facts),
        "wf_Q_A_Prob_normalised": fmean(options(row) for row in sets["world_facts"]),
        "extraction_strength": fmean(theirs.strength(r["question"], r["answer"]) for r in sets["forget"]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    usual = evaluate_tofu(knowing, words, sets, max_new_tokens=1, progress=False)
    assert usual["forget_Q_A_Prob"] != pytest.approx(expected["forget_Q_A_Prob"], rel=1e-3)
    with pytest.raises(ValueError, match="Unknown compatibility 'tofu'"):
        evaluate_tofu(knowing, words, sets, compatibility="tofu", progress=False)


def test_wagles_membership_inference(knowing, words, sets):
    found = evaluate_tofu(knowing, words, sets, wagle_mia=True, max_new_tokens=1, progress=False)
    qa, scores = QAFormat.for_tokenizer(words), {}
    for name in ("forget", "retain"):
        scores[name] = []
        for row in sets[name]:
            ids = torch.tensor(qa.encode(row["question"], row["answer"])["input_ids"])
            with torch.no_grad():
                log_probs = knowing(ids[None]).logits[0].log_softmax(-1)
            chosen = sorted(log_probs[range(len(ids) - 1), ids[1:]].tolist())
            scores[name].append(-fmean(chosen[: len(chosen) // 2]))
    assert paper_averages(found)["MIA"] == 1 - auc(scores["forget"], scores["retain"])


def test_a_format_of_ones_own(knowing, sets):
    words = fictional_tokenizer()
    words.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    qa = QAFormat.for_tokenizer(words, "chat", system_prompt="Who")
    found = evaluate_tofu(knowing, words, sets, qa_format=qa, max_new_tokens=1, progress=False)
    bare = evaluate_tofu(knowing, words, sets, max_new_tokens=1, progress=False)
    assert found["forget_Q_A_Prob"] != bare["forget_Q_A_Prob"]


def test_json_and_settings(results, tmp_path):
    save_results(results, tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == results
    assert results["settings"]["style"] == "plain"
    assert results["settings"]["examples"] == dict.fromkeys([*SETS, "holdout"], 5)


def test_answers_end_at_three_times_the_longest(results, knowing, words, sets):
    qa = QAFormat.for_tokenizer(words)
    longest = max(
        sum(label != -100 for label in qa.encode(row["question"], row["answer"])["labels"])
        for name in SETS
        for row in sets[name]
    )
    assert results["settings"]["max_new_tokens"] == 3 * longest < 200
    short = evaluate_tofu(knowing, words, sets, max_new_tokens=2, progress=False)
    assert short["settings"]["max_new_tokens"] == 2
    assert max(len(words(text).input_ids) for text in short["per_example"]["retain"]["generation"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sets: sets.pop("world_facts"), "needs the set 'world_facts'; given are forget, retain, real_authors"),
        (lambda sets: sets.update(retain=[]), "set 'retain' is empty"),
        (
            lambda sets: sets.update(forget=sets["forget"].remove_columns("paraphrased_answer")),
            "set 'forget' has no 'paraphrased_answer'",
        ),
        (
            lambda sets: sets.update(real_authors=[{**sets["real_authors"][0], "perturbed_answer": []}]),
            "set 'real_authors' has no 'perturbed_answer' in row 0",
        ),
    ],
)
def test_missing_data_is_named(knowing, words, sets, change, message):
    broken = dict(sets)
    change(broken)
    with pytest.raises(ValueError, match=message):
        evaluate_tofu(knowing, words, broken, progress=False)


def test_a_reference_that_does_not_fit_is_refused(results, knowing, words, sets):
    with pytest.raises(ValueError, match="no per-example values of the forget set"):
        evaluate_tofu(knowing, words, sets, reference=aggregates(results), progress=False)
    fewer = {**sets, "forget": sets["forget"].select(range(3))}
    with pytest.raises(ValueError, match=r"other forget questions \(5 of them, here 3\)"):
        evaluate_tofu(knowing, words, fewer, reference=results, progress=False)


def test_a_broken_weight_names_set_and_row(knowing, words, sets):
    broken = LlamaForCausalLM(knowing.config)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"set '\w+', row \d, \w+: the log-probability"):
        evaluate_tofu(broken, words, sets, progress=False)
