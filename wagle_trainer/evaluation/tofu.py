"""TOFU's evaluation (arXiv 2401.06121) under OpenUnlearning's names and definitions (arXiv 2506.12618)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, Literal

from wagle_trainer.data.formatting import QAFormat
from wagle_trainer.evaluation.answer_scores import score_answers
from wagle_trainer.evaluation.generation import answer_limit, generate_greedy
from wagle_trainer.evaluation.membership_inference import gradient_norms, membership_scores
from wagle_trainer.evaluation.results import load_results
from wagle_trainer.evaluation.suite_inputs import Row, describe_model, read_set
from wagle_trainer.evaluation.tofu_metrics import (
    MAKE_HOLDOUT,
    PARAPHRASED_QUESTION,
    TRUTH_COLUMN,
    Columns,
    Scores,
    aggregates,
    compare,
    per_example_columns,
)


def evaluate_tofu(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Iterable[Row]],
    *,
    style: Literal["auto", "chat", "plain"] = "auto",
    batch_size: int = 32,
    max_new_tokens: int = 200,
    reference: Mapping[str, Any] | str | PathLike[str] | None = None,
    non_members: Literal["holdout", "retain"] = "holdout",
    gradient_norm: bool = False,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Everything that TOFU asks of a model, in one scoring pass and one generation pass over all sets.

    Definitions, per example: probability is exp(mean log-probability per token) of `answer`, on real authors and
    world facts normalised over `answer` and `perturbed_answer`; ROUGE is the ROUGE-L recall of the greedy answer; the
    truth ratio holds `perturbed_answer` against `paraphrased_answer` (forget, retain) or `answer` (the others). PARA
    after the A is the paraphrased answer to the question, PERT the mean over the wrong ones; PARA before the Q is the
    answer to the question in other words. Membership inference tells the forget set from examples that were never
    trained on: an AUC (mia_...) of 1 says that the model gives all of them away, 0.5 that it gives away nothing.

    Args:
        model: a causal language model, Transformers or PEFT, on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        datasets: "forget", "retain", "real_authors" and "world_facts" as `load_tofu_evaluation` gives them: rows with
            `question`, `answer`, `perturbed_answer` (a list) and, for forget and retain, `paraphrased_answer`. The
            forget rows may have `paraphrased_question`. A set "holdout" of `question` and `answer` is optional.
        style: how questions and answers become text, see `QAFormat`.
        batch_size: examples per forward pass and prompts per generation batch; results do not depend on it.
        max_new_tokens: a generated answer ends after so many tokens, or after three times the tokens of the longest
            answer of the four sets if that is less.
        reference: what this function returned for a model retrained without the forget set, or the path of its JSON;
            without it there is no forget quality, no privacy leakage and no reference attack.
        non_members: whom membership inference tells the forget set from. "retain" is a makeshift where there is no
            holdout set: the model was trained on it, so an AUC of 0.5 then means "known as well as what was kept".
        gradient_norm: also run the gradient-norm attack, a backward pass for each example.
        across_processes: deal the work out over accelerate's processes. All have to call this with the same arguments;
            all get the same results.
        progress: show progress bars.

    Returns:
        A dict that JSON can hold:

        - forget_Q_A_Prob, forget_Q_A_ROUGE, forget_truth_ratio (mean of min(r, 1 / r)), extraction_strength,
          exact_memorization, and with a reference forget_quality (p-value of the KS test);
        - retain_Q_A_Prob, retain_Q_A_ROUGE, retain_Truth_Ratio (mean of max(0, 1 - r)), retain_extraction_strength,
          retain_exact_memorization;
        - for forget and retain, Q_A_PARA_Prob, Q_A_PERT_Prob, Q_A_PARA_ROUGE and Q_A_PERT_ROUGE; with paraphrased
          questions forget_PARA_Q_A_Prob and forget_PARA_Q_A_ROUGE;
        - ra_Q_A_Prob, ra_Q_A_PERT_Prob, ra_Q_A_Prob_normalised, ra_Q_A_ROUGE, ra_Truth_Ratio, and the same with wf_ for
          the world facts;
        - model_utility, the harmonic mean of retain, ra and wf probability (normalised for ra and wf), ROUGE and truth
          ratio;
        - with a holdout set the AUCs mia_loss, mia_zlib, mia_min_k and mia_min_k_plus_plus (k = 0.4), with
          `gradient_norm` mia_gradnorm; with a reference that has them, too, mia_reference and privleak (`mia_min_k`
          held against the reference's, in percent; 0 is best);
        - per_example: for each set lists in the order of its rows (question, answer, generation, probability,
          rouge_l_recall, log_truth_ratio, extraction_strength, ..., and the log-probabilities behind them in nats);
        - settings: what was used, and under "missing", for each number that could not be computed, why, and what to do.

    Raises:
        ValueError: a set or column is missing or empty (the message names it), the reference is no such result or was
            made on other questions, or `gradient_norm` is asked for without non-members.
        FloatingPointError: a log-probability is not finite.
    """
    rows = {name: _read(datasets, name) for name in TRUTH_COLUMN}
    if "holdout" in datasets:
        rows["holdout"] = _read(datasets, "holdout")
    if non_members not in ("holdout", "retain"):
        raise ValueError(f"non_members must be 'holdout' or 'retain', not {non_members!r}.")
    attacked = ["forget", non_members] if non_members in rows else []
    if gradient_norm and not attacked:
        raise ValueError(f"gradient_norm=True {MAKE_HOLDOUT}.")
    known = None if reference is None else _read_reference(reference, rows)
    qa = QAFormat.for_tokenizer(tokenizer, style=style)
    passes: dict[str, Any] = {"batch_size": batch_size, "across_processes": across_processes, "progress": progress}
    scores = _score(model, qa, rows, tokens=True, vocabulary=bool(attacked), **passes)
    generations, max_new_tokens = _generate(model, qa, rows, max_new_tokens, passes)
    per_example: dict[str, Columns] = {
        name: per_example_columns(name, rows[name], scores[name], generations[name]) for name in rows
    }
    for name in attacked:
        answers = [row["answer"] for row in rows[name]]
        per_example[name] |= membership_scores([score for [score] in scores[name]["answer"]], answers)
        if gradient_norm:
            per_example[name]["mia_gradnorm"] = gradient_norms(
                model,
                [qa.encode(row["question"], row["answer"]) for row in rows[name]],
                [f"set {name!r}, row {index}" for index in range(len(answers))],
                eos_token_id=tokenizer.eos_token_id,
                across_processes=across_processes,
                progress=progress,
            )
    results: dict[str, Any] = aggregates(per_example)
    missing = compare(results, per_example, known, non_members)
    results["per_example"] = per_example
    results["settings"] = {
        **describe_model(model),
        "style": qa.style,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "examples": {name: len(rows[name]) for name in rows},
        "non_members": non_members if attacked else None,
        "missing": missing,
    }
    return results


def _read(datasets: Mapping[str, Iterable[Row]], name: str) -> list[Row]:
    needed = ["question", "answer"]
    if name in TRUTH_COLUMN:
        needed += ["perturbed_answer", TRUTH_COLUMN[name]]
    return read_set(datasets, name, needed)


def _read_reference(
    reference: Mapping[str, Any] | str | PathLike[str], rows: Mapping[str, list[Row]]
) -> dict[str, Columns]:
    """The reference's per-example values of the forget set and of those non-members that are the same here."""
    results = reference if isinstance(reference, Mapping) else load_results(reference)
    try:
        per_example: dict[str, Columns] = results["per_example"]
        questions = per_example["forget"]["question"]
        _ = per_example["forget"]["log_truth_ratio"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            "The reference must be what evaluate_tofu returned for a retrained model: it has no per-example values of "
            "the forget set."
        ) from error
    if questions != [row["question"] for row in rows["forget"]]:
        raise ValueError(
            f"The reference was made on other forget questions ({len(questions)} of them, here "
            f"{len(rows['forget'])}): evaluate the retrained model on the same forget set."
        )
    return {
        name: columns
        for name, columns in per_example.items()
        if name in rows and columns["question"] == [row["question"] for row in rows[name]]
    }


def _columns(name: str, rows: list[Row]) -> list[str]:
    """The columns whose answers are scored."""
    if name not in TRUTH_COLUMN:
        return ["answer"]
    columns = list(dict.fromkeys(("answer", TRUTH_COLUMN[name], "perturbed_answer")))
    if name == "forget" and all(row.get("paraphrased_question") for row in rows):
        columns.append(PARAPHRASED_QUESTION)
    return columns


def _score(model: Any, qa: QAFormat, rows: Mapping[str, list[Row]], **options: Any) -> dict[str, Scores]:
    """Scores of every answer: set -> column -> row -> one score, or one for each perturbed answer."""
    examples, names = [], []
    for name in rows:
        for column in _columns(name, rows[name]):
            for index, row in enumerate(rows[name]):
                question = row["paraphrased_question" if column == PARAPHRASED_QUESTION else "question"]
                for answer in _answers(row, column):
                    examples.append(qa.encode(question, answer))
                    names.append(f"set {name!r}, row {index}, {column}")
    scored = iter(score_answers(model, examples, names, eos_token_id=qa.tokenizer.eos_token_id, **options))
    return {
        name: {
            column: [[next(scored) for _ in _answers(row, column)] for row in rows[name]]
            for column in _columns(name, rows[name])
        }
        for name in rows
    }


def _answers(row: Row, column: str) -> list[str]:
    answer = row["answer" if column == PARAPHRASED_QUESTION else column]
    return answer if isinstance(answer, list) else [answer]


def _generate(
    model: Any,
    qa: QAFormat,
    rows: Mapping[str, list[Row]],
    max_new_tokens: int,
    passes: Mapping[str, Any],
) -> tuple[dict[str, dict[str, list[str]]], int]:
    """Answers to every question: set -> column of the question -> row; and after how many tokens they were cut off."""
    labels = [qa.encode(row["question"], row["answer"])["labels"] for name in TRUTH_COLUMN for row in rows[name]]
    max_new_tokens = answer_limit(labels, max_new_tokens)
    asked = [(name, "question") for name in TRUTH_COLUMN]
    if PARAPHRASED_QUESTION in _columns("forget", rows["forget"]):
        asked.append(("forget", "paraphrased_question"))
    prompts = [qa.prompt_ids(row[column]) for name, column in asked for row in rows[name]]
    texts = iter(generate_greedy(model, qa.tokenizer, prompts, max_new_tokens=max_new_tokens, **passes))
    generations: dict[str, dict[str, list[str]]] = {name: {} for name in rows}
    for name, column in asked:
        generations[name][column] = [next(texts) for _ in rows[name]]
    return generations, max_new_tokens
