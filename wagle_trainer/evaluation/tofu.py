"""TOFU's evaluation (arXiv 2401.06121) under OpenUnlearning's names and definitions (arXiv 2506.12618)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, Literal

from wagle_trainer.data.formatting import QAFormat
from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.generation import generate_greedy
from wagle_trainer.evaluation.likelihoods import AnswerScore, score_answers
from wagle_trainer.evaluation.results import load_results

Row = Mapping[str, Any]

# set -> the column whose answer the truth ratio takes as correct; the wrong ones are always "perturbed_answer"
_TRUTH_COLUMN = {
    "forget": "paraphrased_answer",
    "retain": "paraphrased_answer",
    "real_authors": "answer",
    "world_facts": "answer",
}
_UTILITY = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
# Three times the longest TOFU answer is more than OpenUnlearning's 200 tokens: there the limit is the same. On data
# with short answers, a model that unlearned where to stop does not cost 200 steps per batch.
_LONGEST_ANSWERS = 3


def evaluate_tofu(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Iterable[Row]],
    *,
    style: Literal["auto", "chat", "plain"] = "auto",
    batch_size: int = 32,
    max_new_tokens: int = 200,
    reference: Mapping[str, Any] | str | PathLike[str] | None = None,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Everything that TOFU asks of a model, in one scoring pass and one generation pass over all four sets.

    Definitions, per example: probability is exp(mean log-probability per token) of `answer`, on real authors and
    world facts normalised over `answer` and `perturbed_answer`; ROUGE is the ROUGE-L recall of the greedy answer; the
    truth ratio holds `perturbed_answer` against `paraphrased_answer` (forget, retain) or `answer` (the others).

    Args:
        model: a causal language model, Transformers or PEFT, on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        datasets: "forget", "retain", "real_authors" and "world_facts" as `load_tofu_evaluation` gives them: rows with
            `question`, `answer`, `perturbed_answer` (a list) and, for forget and retain, `paraphrased_answer`.
        style: how questions and answers become text, see `QAFormat`.
        batch_size: examples per forward pass and prompts per generation batch; results do not depend on it.
        max_new_tokens: a generated answer ends after so many tokens, or after three times the tokens of the longest
            answer of the four sets if that is less.
        reference: what this function returned for a model retrained without the forget set, or the path of its JSON;
            without it there is no forget quality.
        across_processes: deal the work out over accelerate's processes. All have to call this with the same arguments;
            all get the same results.
        progress: show progress bars.

    Returns:
        A dict that JSON can hold:

        - forget_Q_A_Prob, forget_Q_A_ROUGE, forget_truth_ratio (mean of min(r, 1 / r)), extraction_strength, and with
          a reference forget_quality (p-value of the KS test);
        - retain_Q_A_Prob, retain_Q_A_ROUGE, retain_Truth_Ratio (mean of max(0, 1 - r)), retain_extraction_strength;
        - ra_Q_A_Prob_normalised, ra_Q_A_ROUGE, ra_Truth_Ratio, and the same with wf_ for the world facts;
        - model_utility, the harmonic mean of the nine retain, ra and wf values without extraction strength;
        - per_example: for each set lists in the order of its rows (question, answer, generation, probability,
          rouge_l_recall, log_truth_ratio, extraction_strength, and the mean log-probabilities behind them in nats);
        - settings: what was used.

    Raises:
        ValueError: a set or column is missing or empty (the message names it), or the reference is no such result, or
            was made on other forget questions.
        FloatingPointError: a log-probability is not finite.
    """
    rows = {name: _read(datasets, name) for name in _TRUTH_COLUMN}
    reference_ratios = None if reference is None else _reference_ratios(reference, rows["forget"])
    qa = QAFormat.for_tokenizer(tokenizer, style=style)
    passes = {"batch_size": batch_size, "across_processes": across_processes, "progress": progress}
    scores = _score(model, qa, rows, passes)
    longest = max(score.num_tokens for by_column in scores.values() for [score] in by_column["answer"])
    max_new_tokens = min(max_new_tokens, _LONGEST_ANSWERS * longest)
    prompts = [qa.prompt_ids(row["question"]) for name in rows for row in rows[name]]
    generations = iter(generate_greedy(model, tokenizer, prompts, max_new_tokens=max_new_tokens, **passes))
    per_example = {
        name: _per_example(name, rows[name], scores[name], [next(generations) for _ in rows[name]]) for name in rows
    }
    results: dict[str, Any] = _aggregates(per_example)
    if reference_ratios is not None:
        results["forget_quality"] = metrics.forget_quality(per_example["forget"]["log_truth_ratio"], reference_ratios)
    results["per_example"] = per_example
    results["settings"] = {
        "model": getattr(model.config, "_name_or_path", ""),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "style": qa.style,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "examples": {name: len(rows[name]) for name in rows},
    }
    return results


def _read(datasets: Mapping[str, Iterable[Row]], name: str) -> list[Row]:
    if name not in datasets:
        raise ValueError(f"The evaluation needs the set {name!r}; given are {', '.join(datasets) or 'none'}.")
    rows = list(datasets[name])
    if not rows:
        raise ValueError(f"The evaluation set {name!r} is empty.")
    for column in dict.fromkeys(("question", "answer", "perturbed_answer", _TRUTH_COLUMN[name])):
        for index, row in enumerate(rows):
            if not row.get(column):
                raise ValueError(f"The evaluation set {name!r} has no {column!r} in row {index}.")
    return rows


def _reference_ratios(reference: Mapping[str, Any] | str | PathLike[str], forget: list[Row]) -> list[float]:
    results = reference if isinstance(reference, Mapping) else load_results(reference)
    try:
        per_example = results["per_example"]["forget"]
        questions, ratios = per_example["question"], per_example["log_truth_ratio"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            "The reference must be what evaluate_tofu returned for a retrained model: it has no per-example values of "
            "the forget set."
        ) from error
    if questions != [row["question"] for row in forget]:
        raise ValueError(
            f"The reference was made on other forget questions ({len(questions)} of them, here {len(forget)}): "
            "evaluate the retrained model on the same forget set."
        )
    return ratios


def _score(
    model: Any, qa: QAFormat, rows: Mapping[str, list[Row]], passes: dict[str, Any]
) -> dict[str, dict[str, list[list[AnswerScore]]]]:
    """Scores of every answer: set -> column -> row -> one score, or one for each perturbed answer."""
    examples, names = [], []
    columns = {name: list(dict.fromkeys(("answer", _TRUTH_COLUMN[name], "perturbed_answer"))) for name in rows}
    for name in rows:
        for column in columns[name]:
            for index, row in enumerate(rows[name]):
                for answer in _answers(row, column):
                    examples.append(qa.encode(row["question"], answer))
                    names.append(f"set {name!r}, row {index}, {column}")
    scored = iter(score_answers(model, examples, names, eos_token_id=qa.tokenizer.eos_token_id, **passes))
    return {
        name: {
            column: [[next(scored) for _ in _answers(row, column)] for row in rows[name]] for column in columns[name]
        }
        for name in rows
    }


def _answers(row: Row, column: str) -> list[str]:
    return row[column] if isinstance(row[column], list) else [row[column]]


def _per_example(
    name: str, rows: list[Row], scores: Mapping[str, list[list[AnswerScore]]], generations: list[str]
) -> dict[str, list[Any]]:
    log_probs = {
        column: [[score.mean_log_prob for score in row] for row in by_row] for column, by_row in scores.items()
    }
    answer = [value for [value] in log_probs["answer"]]
    truth = [value for [value] in log_probs[_TRUTH_COLUMN[name]]]
    wrong = log_probs["perturbed_answer"]
    normalised = name in ("real_authors", "world_facts")
    probability = metrics.probability_with_options(answer, wrong) if normalised else metrics.answer_probability(answer)
    answers = [row["answer"] for row in rows]
    return {
        "question": [row["question"] for row in rows],
        "answer": answers,
        "generation": generations,
        "probability": probability.tolist(),
        "rouge_l_recall": metrics.rouge_l_recall(generations, answers).tolist(),
        "log_truth_ratio": metrics.log_truth_ratio(truth, wrong).tolist(),
        "extraction_strength": [score.extraction_strength for [score] in scores["answer"]],
        "answer_log_prob": answer,
        "truth_log_prob": truth,
        "perturbed_log_probs": wrong,
    }


def _aggregates(per_example: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, float]:
    forget, retain = per_example["forget"], per_example["retain"]
    results = {
        "forget_Q_A_Prob": _mean(forget["probability"]),
        "forget_Q_A_ROUGE": _mean(forget["rouge_l_recall"]),
        "forget_truth_ratio": _truth_ratio(forget, "closer_to_1_better"),
        "extraction_strength": _mean(forget["extraction_strength"]),
        "retain_Q_A_Prob": _mean(retain["probability"]),
        "retain_Q_A_ROUGE": _mean(retain["rouge_l_recall"]),
        "retain_Truth_Ratio": _truth_ratio(retain, "true_better"),
        "retain_extraction_strength": _mean(retain["extraction_strength"]),
    }
    for prefix, name in (("ra", "real_authors"), ("wf", "world_facts")):
        values = per_example[name]
        results[f"{prefix}_Q_A_Prob_normalised"] = _mean(values["probability"])
        results[f"{prefix}_Q_A_ROUGE"] = _mean(values["rouge_l_recall"])
        results[f"{prefix}_Truth_Ratio"] = _truth_ratio(values, "true_better")
    results["model_utility"] = metrics.model_utility([results[name] for name in _UTILITY])
    return results


def _truth_ratio(values: Mapping[str, list[Any]], aggregation: metrics.Aggregation) -> float:
    return metrics.truth_ratio(values["truth_log_prob"], values["perturbed_log_probs"], aggregation=aggregation)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
