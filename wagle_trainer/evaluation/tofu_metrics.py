"""TOFU's numbers from what a model gave: per example, over each set, and against other examples and another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.answer_scores import AnswerScore
from wagle_trainer.evaluation.suite_inputs import MAKE_REFERENCE, Row

Scores = dict[str, list[list[AnswerScore]]]
Columns = dict[str, list[Any]]

# set -> the column whose answer the truth ratio takes as correct; the wrong ones are always "perturbed_answer"
TRUTH_COLUMN = {
    "forget": "paraphrased_answer",
    "retain": "paraphrased_answer",
    "real_authors": "answer",
    "world_facts": "answer",
}
# The answers to questions in other words are scored under a column of their own.
PARAPHRASED_QUESTION = "answer to paraphrased_question"
# What the model utility is the harmonic mean of.
UTILITY = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
_ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
MAKE_HOLDOUT = (
    "needs examples that the model was never trained on: pass a set named 'holdout' (TOFU's holdout01, holdout05 or "
    "holdout10, which load_tofu_evaluation loads where there is one)"
)


def per_example_columns(name: str, rows: list[Row], scores: Scores, generations: Mapping[str, list[str]]) -> Columns:
    """What is known of each row of a set, by column.

    Args:
        name: of the set; others than TOFU's four have nothing but an answer.
        rows: questions and answers.
        scores: column of the answers -> row -> one score for each.
        generations: column of the question -> row -> what the model answered.
    """
    log_probs = {
        column: [[score.mean_log_prob for score in row] for row in by_row] for column, by_row in scores.items()
    }
    answers = [row["answer"] for row in rows]
    columns: Columns = {
        "question": [row["question"] for row in rows],
        "answer": answers,
        "answer_log_prob": [value for [value] in log_probs["answer"]],
        "extraction_strength": [score.extraction_strength for [score] in scores["answer"]],
        "exact_memorization": [metrics.exact_memorization(score.is_top1 or []) for [score] in scores["answer"]],
    }
    if name not in TRUTH_COLUMN:
        return columns
    answer = columns["answer_log_prob"]
    truth = [value for [value] in log_probs[TRUTH_COLUMN[name]]]
    wrong = log_probs["perturbed_answer"]
    normalised = name in ("real_authors", "world_facts")
    probability = metrics.probability_with_options(answer, wrong) if normalised else metrics.answer_probability(answer)
    texts = generations["question"]
    columns |= {
        "generation": texts,
        "probability": probability.tolist(),
        "rouge_l_recall": metrics.rouge_l_recall(texts, answers).tolist(),
        "log_truth_ratio": metrics.log_truth_ratio(truth, wrong).tolist(),
        "truth_log_prob": truth,
        "perturbed_log_probs": wrong,
    }
    if not normalised:
        paraphrases = [row["paraphrased_answer"] for row in rows]
        columns["paraphrased_rouge_l_recall"] = metrics.rouge_l_recall(texts, paraphrases).tolist()
        columns["perturbed_rouge_l_recalls"] = [
            metrics.rouge_l_recall([text] * len(row["perturbed_answer"]), row["perturbed_answer"]).tolist()
            for text, row in zip(texts, rows, strict=True)
        ]
    if "paraphrased_question" in generations:
        texts = generations["paraphrased_question"]
        columns |= {
            "paraphrased_question": [row["paraphrased_question"] for row in rows],
            "paraphrased_question_generation": texts,
            "paraphrased_question_log_prob": [value for [value] in log_probs[PARAPHRASED_QUESTION]],
            "paraphrased_question_rouge_l_recall": metrics.rouge_l_recall(texts, answers).tolist(),
        }
    return columns


def aggregates(per_example: Mapping[str, Columns]) -> dict[str, float]:
    """The numbers that the model's own answers give, by OpenUnlearning's names where it has them."""
    forget = per_example["forget"]
    results = {
        "forget_truth_ratio": _truth_ratio(forget, "closer_to_1_better"),
        "retain_Truth_Ratio": _truth_ratio(per_example["retain"], "true_better"),
    }
    for name, prefix in (("forget", ""), ("retain", "retain_")):
        values = per_example[name]
        results |= {
            f"{name}_Q_A_Prob": _mean(values["probability"]),
            f"{name}_Q_A_ROUGE": _mean(values["rouge_l_recall"]),
            f"{prefix}extraction_strength": _mean(values["extraction_strength"]),
            f"{prefix}exact_memorization": _mean(values["exact_memorization"]),
            f"{name}_Q_A_PARA_Prob": _probability(values["truth_log_prob"]),
            f"{name}_Q_A_PERT_Prob": _mean([_probability(wrong) for wrong in values["perturbed_log_probs"]]),
            f"{name}_Q_A_PARA_ROUGE": _mean(values["paraphrased_rouge_l_recall"]),
            f"{name}_Q_A_PERT_ROUGE": _mean([_mean(recalls) for recalls in values["perturbed_rouge_l_recalls"]]),
        }
    if "paraphrased_question" in forget:
        results["forget_PARA_Q_A_Prob"] = _probability(forget["paraphrased_question_log_prob"])
        results["forget_PARA_Q_A_ROUGE"] = _mean(forget["paraphrased_question_rouge_l_recall"])
    for prefix, name in (("ra", "real_authors"), ("wf", "world_facts")):
        values = per_example[name]
        results[f"{prefix}_Q_A_Prob"] = _probability(values["answer_log_prob"])
        results[f"{prefix}_Q_A_PERT_Prob"] = _mean([_probability(wrong) for wrong in values["perturbed_log_probs"]])
        results[f"{prefix}_Q_A_Prob_normalised"] = _mean(values["probability"])
        results[f"{prefix}_Q_A_ROUGE"] = _mean(values["rouge_l_recall"])
        results[f"{prefix}_Truth_Ratio"] = _truth_ratio(values, "true_better")
    results["model_utility"] = metrics.model_utility([results[name] for name in UTILITY])
    return results


def compare(
    results: dict[str, Any], per_example: dict[str, Columns], known: Mapping[str, Columns] | None, non_members: str
) -> dict[str, str]:
    """Add what holds the forget set against non-members and the model against a reference; why and how where it cannot."""
    missing: dict[str, str] = {}
    forget, others = per_example["forget"], per_example.get(non_members, {})
    if known is None:
        missing["forget_quality"] = MAKE_REFERENCE
    else:
        results["forget_quality"] = metrics.forget_quality(
            forget["log_truth_ratio"], known["forget"]["log_truth_ratio"]
        )
    if "mia_loss" not in others:
        return missing | dict.fromkeys((*_ATTACKS, "mia_reference", "privleak"), MAKE_HOLDOUT)
    for attack in (*_ATTACKS, *(["mia_gradnorm"] if "mia_gradnorm" in others else [])):
        results[attack] = metrics.roc_auc(forget[attack], others[attack])
    if known is None:
        return missing | dict.fromkeys(("mia_reference", "privleak"), MAKE_REFERENCE)
    if not all("mia_min_k" in known.get(name, {}) for name in ("forget", non_members)):
        return missing | dict.fromkeys(
            ("mia_reference", "privleak"),
            f"the reference was not measured on these {non_members} examples: evaluate the retrained model on the same "
            f"sets, with non_members={non_members!r}",
        )
    for name in ("forget", non_members):
        own, reference = per_example[name]["mia_loss"], known[name]["mia_loss"]
        per_example[name]["mia_reference"] = metrics.reference_score(own, reference).tolist()
    results["mia_reference"] = metrics.roc_auc(forget["mia_reference"], others["mia_reference"])
    reference_auc = metrics.roc_auc(known["forget"]["mia_min_k"], known[non_members]["mia_min_k"])
    if reference_auc < 1:
        results["privleak"] = metrics.privacy_leakage(results["mia_min_k"], reference_auc)
    else:
        missing["privleak"] = (
            "min-k tells forget and holdout set apart on the reference, too, which saw neither (AUC 1): they differ in "
            "more than membership, so there is nothing to hold leakage against; take more rows, or others"
        )
    return missing


def _truth_ratio(values: Columns, aggregation: metrics.Aggregation) -> float:
    return metrics.truth_ratio(values["truth_log_prob"], values["perturbed_log_probs"], aggregation=aggregation)


def _probability(log_probs: list[float]) -> float:
    return float(metrics.answer_probability(log_probs).mean())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
