"""TOFU's evaluation (arXiv 2401.06121) under OpenUnlearning's names and definitions (arXiv 2506.12618)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from scipy.special import expit

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.suites.habits import Compatibility, Habits, habits_of
from wagle_trainer.evaluation.suites.response import Response, add_columns
from wagle_trainer.evaluation.suites.suite import Suite, register_suite
from wagle_trainer.evaluation.suites.suite_inputs import MAKE_REFERENCE, Row, describe_model, groups_of, read_set
from wagle_trainer.evaluation.suites.suite_metric import Auc, HarmonicMean, Mean, SuiteMetric, mean_of

if TYPE_CHECKING:  # they need torch
    from wagle_trainer.data.qa_format import QAFormat
    from wagle_trainer.evaluation.answer_scores import AnswerScore

Scores = dict[str, list[list["AnswerScore"]]]
Columns = dict[str, list[Any]]

# set -> the column whose answer the truth ratio takes as correct; the wrong ones are always "perturbed_answer"
_TRUTH_COLUMN = {
    "forget": "paraphrased_answer",
    "retain": "paraphrased_answer",
    "real_authors": "answer",
    "world_facts": "answer",
}
# The answers to questions in other words are scored under a column of their own.
_PARAPHRASED_QUESTION = "answer to paraphrased_question"
_IMPOSSIBLE = 1e-10  # a probability per token; below it, OpenUnlearning's denominators are their own constant
_ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
_MAKE_HOLDOUT = (
    "needs examples that the model was never trained on: pass a set named 'holdout' (TOFU's holdout01, holdout05 or "
    "holdout10, which load_tofu_evaluation loads where there is one)"
)


def _closer_to_1_better(log_ratios: Any, _: Any) -> Any:
    return np.exp(-np.abs(log_ratios))  # min(r, 1 / r)


def _true_better(log_ratios: Any, _: Any) -> Any:
    return -np.expm1(np.minimum(log_ratios, 0))  # max(0, 1 - r)


def _share_of_correct(log_ratios: Any, _: Any) -> Any:
    return expit(-np.asarray(log_ratios))  # p / (p + w), for the truth ratio w / p


def _exp(log_probs: Any, _: Any) -> Any:
    return np.exp(log_probs)


def _mean_exp(log_probs: Any, _: Any) -> list[Any]:
    return [np.exp(row).mean() for row in log_probs]


def _mean_of_each(rows: Any, _: Any) -> list[Any]:
    return [np.mean(row) for row in rows]


_UTILITY = tuple(
    Mean(name, column, transform)
    for name in ("retain", "real_authors", "world_facts")
    for column, transform in (("probability", None), ("rouge_l_recall", None), ("log_truth_ratio", _true_better))
)


def _variants(name: str) -> list[SuiteMetric]:
    """Probability and ROUGE of paraphrased and of wrong answers to the questions of one set, and other forms of both."""
    return [
        mean_of(
            f"{name}_truth_ratio_mean_prob",
            name,
            "log_truth_ratio",
            "Probability of the paraphrased answer over the sum of it and that of the wrong ones (their geometric mean).",
            transform=_share_of_correct,
        ),
        mean_of(f"{name}_Q_A_ROUGE1", name, "rouge_1_recall", "ROUGE-1 recall of the greedy answer."),
        mean_of(f"{name}_Q_A_ROUGEL_F1", name, "rouge_l_f1", "ROUGE-L F1 (with stemming) of the greedy answer."),
        mean_of(
            f"{name}_Q_A_PARA_Prob", name, "truth_log_prob", "Probability of the paraphrased answer.", transform=_exp
        ),
        mean_of(
            f"{name}_Q_A_PERT_Prob",
            name,
            "perturbed_log_probs",
            "Mean probability of the wrong answers.",
            transform=_mean_exp,
        ),
        mean_of(
            f"{name}_Q_A_PARA_ROUGE",
            name,
            "paraphrased_rouge_l_recall",
            "ROUGE-L recall of the greedy answer, compared with the paraphrased answer.",
        ),
        mean_of(
            f"{name}_Q_A_PERT_ROUGE",
            name,
            "perturbed_rouge_l_recalls",
            "ROUGE-L recall of the greedy answer, compared with the wrong answers.",
            transform=_mean_of_each,
        ),
    ]


def _general(prefix: str, name: str) -> list[SuiteMetric]:
    """The metrics of a set that no model was taught: real authors, world facts."""
    return [
        mean_of(f"{prefix}_Q_A_Prob", name, "answer_log_prob", "Probability of the answer.", transform=_exp),
        mean_of(
            f"{prefix}_Q_A_PERT_Prob",
            name,
            "perturbed_log_probs",
            "Mean probability of the wrong answers.",
            transform=_mean_exp,
        ),
        mean_of(
            f"{prefix}_Q_A_Prob_normalised",
            name,
            "probability",
            "Probability of the answer, normalised over the true and the wrong answers.",
            utility="higher",
        ),
        mean_of(
            f"{prefix}_Q_A_ROUGE", name, "rouge_l_recall", "ROUGE-L recall of the greedy answer.", utility="higher"
        ),
        mean_of(
            f"{prefix}_Truth_Ratio",
            name,
            "log_truth_ratio",
            "Mean of max(0, 1 - r), r the truth ratio of wrong to true answers.",
            transform=_true_better,
            utility="higher",
        ),
    ]


def _attack(name: str, what: str) -> SuiteMetric:
    return SuiteMetric(
        name,
        Auc(name),
        f"AUC of membership inference by {what}; 0.5 is best, 1 tells all forget examples from others.",
    )


TOFU_METRICS = (
    mean_of(
        "forget_Q_A_Prob",
        "forget",
        "probability",
        "Probability of the answer: exp(mean log-probability per token).",
        forget="lower",
        main=True,
        head=("forget", "prob"),
    ),
    mean_of(
        "forget_Q_A_ROUGE",
        "forget",
        "rouge_l_recall",
        "ROUGE-L recall of the greedy answer.",
        forget="lower",
        head=("forget", "ROUGE-L"),
    ),
    mean_of(
        "forget_PARA_Q_A_Prob",
        "forget",
        "paraphrased_question_log_prob",
        "Probability of the answer to the paraphrased question.",
        transform=_exp,
        forget="lower",
    ),
    mean_of(
        "forget_PARA_Q_A_ROUGE",
        "forget",
        "paraphrased_question_rouge_l_recall",
        "ROUGE-L recall of the greedy answer to the paraphrased question.",
        forget="lower",
    ),
    mean_of(
        "forget_truth_ratio",
        "forget",
        "log_truth_ratio",
        "Mean of min(r, 1 / r), r the truth ratio of wrong to paraphrased answers.",
        transform=_closer_to_1_better,
        forget="higher",
        head=("forget", "truth ratio"),
    ),
    mean_of(
        "extraction_strength",
        "forget",
        "extraction_strength",
        "1 less the share of the answer that recalls its rest.",
        forget="lower",
        head=("extraction", "strength"),
    ),
    mean_of(
        "exact_memorization",
        "forget",
        "exact_memorization",
        "Share of the answer's tokens that are the most likely ones.",
        forget="lower",
    ),
    mean_of(
        "retain_Q_A_Prob",
        "retain",
        "probability",
        "Probability of the answer: exp(mean log-probability per token).",
        utility="higher",
        head=("retain", "prob"),
    ),
    mean_of(
        "retain_Q_A_ROUGE",
        "retain",
        "rouge_l_recall",
        "ROUGE-L recall of the greedy answer.",
        utility="higher",
        head=("retain", "ROUGE-L"),
    ),
    mean_of(
        "retain_Truth_Ratio",
        "retain",
        "log_truth_ratio",
        "Mean of max(0, 1 - r), r the truth ratio of wrong to paraphrased answers.",
        transform=_true_better,
        utility="higher",
    ),
    SuiteMetric(
        "model_utility",
        HarmonicMean(_UTILITY),
        "Harmonic mean of probability (normalised on real authors and world facts), ROUGE-L recall and truth ratio of the "
        "three other sets.",
        utility="higher",
        main=True,
        head=("model", "utility"),
    ),
    SuiteMetric(
        "forget_quality",
        None,
        "p-value of the Kolmogorov-Smirnov test of the truth ratios against those of a retrained model.",
        forget="higher",
        head=("forget", "quality"),
        p_value=True,
        set="forget",
    ),
    mean_of(
        "retain_extraction_strength",
        "retain",
        "extraction_strength",
        "1 less the share of the answer that recalls its rest.",
    ),
    mean_of(
        "retain_exact_memorization",
        "retain",
        "exact_memorization",
        "Share of the answer's tokens that are the most likely ones.",
    ),
    *_variants("forget"),
    *_variants("retain"),
    *_general("ra", "real_authors"),
    *_general("wf", "world_facts"),
    _attack("mia_loss", "loss"),
    _attack("mia_zlib", "loss over compressed size"),
    _attack("mia_min_k", "Min-40% Prob"),
    _attack("mia_min_k_plus_plus", "Min-40%++"),
    _attack("mia_gradnorm", "gradient norm"),
    _attack("mia_reference", "loss less that of a retrained model"),
    SuiteMetric(
        "privleak",
        None,
        "Privacy leakage in percent: `mia_min_k` compared with that of a retrained model; 0 is best.",
        range=(-100.0, float("inf")),
    ),
)


@register_suite("tofu")
class Tofu(Suite):
    """TOFU (Maini et al. 2024, arXiv 2401.06121) under OpenUnlearning's names: questions about invented authors.

    Membership inference (`mia_...`) is best at 0.5 and `privleak` at zero: they say neither more nor less.
    """

    takes_qa_format: ClassVar = True
    metrics: ClassVar = TOFU_METRICS

    def load(self, data: str = "fictional", *, forget_split: str = "forget10", limit: int | None = None) -> Any:
        """The sets, see `load_tofu_evaluation`.

        Args:
            data: a hub id (`"locuslab/TOFU"`), a folder of `<split>.json` files, or the bundled `"fictional"`.
            forget_split: forget01, forget05 or forget10.
            limit: rows of each set, drawn evenly over the authors; None for all.
        """
        from wagle_trainer.data.tofu import load_tofu_evaluation

        return load_tofu_evaluation(data, forget_split, limit)

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_tofu`."""
        return evaluate_tofu(model, tokenizer, data, **kwargs)


def evaluate_tofu(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Iterable[Row]],
    *,
    style: Literal["auto", "chat", "plain"] = "auto",
    qa_format: QAFormat | None = None,
    compatibility: Compatibility = None,
    batch_size: int = 32,
    max_new_tokens: int = 200,
    reference: Mapping[str, Any] | str | PathLike[str] | None = None,
    non_members: Literal["holdout", "retain"] = "holdout",
    gradient_norm: bool = False,
    wagle_mia: bool = False,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """All metrics of TOFU, in one scoring pass and one generation pass over all sets.

    What each number is, its direction and its range: `get_suite("tofu").describe()`.

    Args:
        model: a causal language model, Transformers or PEFT, on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        datasets: "forget", "retain", "real_authors" and "world_facts" as `load_tofu_evaluation` gives them: rows with
            `question`, `answer`, `perturbed_answer` (a list) and, for forget and retain, `paraphrased_answer`. The
            forget rows may have `paraphrased_question`. A set "holdout" of `question` and `answer` is optional. A column
            `group` says which rows are about one author: intervals are over groups then.
        style: how questions and answers become text, see `QAFormat`.
        qa_format: the same as an object, for a system prompt or a template's arguments; `style` plays no part then.
        compatibility: "open-unlearning" for the numbers of OpenUnlearning's code where they differ: see `habits`. By
            default that of `qa_format`.
        batch_size: examples per forward pass and prompts that enter generation at once; results do not depend on it.
        max_new_tokens: a generated answer ends after so many tokens, or after three times the tokens of the longest
            answer of the four sets if that is less.
        reference: what this function returned for a model retrained without the forget set, or the path of its JSON;
            without it there is no forget quality, no privacy leakage and no reference attack.
        non_members: the set that membership inference tells the forget set from. "retain" is a makeshift where there is
            no holdout set: the model was trained on it, so an AUC of 0.5 then means "known as well as the retain set".
        gradient_norm: also run the gradient-norm attack, a backward pass for each example.
        wagle_mia: also score forget and retain rows by Min-50% Prob over question and answer, for `paper_averages`.
        across_processes: shard the work over accelerate's processes. All have to call this with the same arguments;
            all get the same results.
        progress: show progress bars.

    Returns:
        A dict that JSON can hold: the metrics by name; `per_example`, for each set lists in the order of its rows
        (question, answer, generation, probability, rouge_l_recall, log_truth_ratio, extraction_strength, ..., and the
        log-probabilities behind them in nats); and `settings`, with "missing": for each number that could not be
        computed why, and what to do, and "warnings": for each number that may mislead here why.

    Raises:
        ValueError: a set or column is missing or empty (the message names it), the reference is no such result or was
            made on other questions, or `gradient_norm` is requested without non-members.
        FloatingPointError: a log-probability is not finite.
    """
    from wagle_trainer.data.qa_format import QAFormat
    from wagle_trainer.evaluation.generation import generate_greedy
    from wagle_trainer.evaluation.kept_prompts import KeptPrompts
    from wagle_trainer.evaluation.membership_attacks import gradient_norms, membership_scores

    rows = {name: _read(datasets, name) for name in _TRUTH_COLUMN}
    if "holdout" in datasets:
        rows["holdout"] = _read(datasets, "holdout")
    if non_members not in ("holdout", "retain"):
        raise ValueError(f"non_members must be 'holdout' or 'retain', not {non_members!r}.")
    attacked = ["forget", non_members] if non_members in rows else []
    if gradient_norm and not attacked:
        raise ValueError(f"gradient_norm=True {_MAKE_HOLDOUT}.")
    known = None if reference is None else _read_reference(reference, rows)
    qa = qa_format if qa_format is not None else QAFormat.for_tokenizer(tokenizer, style=style)
    compatibility = compatibility or qa.compatibility  # type: ignore[assignment]
    habits = habits_of(compatibility)
    passes: dict[str, Any] = {
        "masked_token": habits.masked_token(tokenizer),
        "batch_size": batch_size,
        "across_processes": across_processes,
        "progress": progress,
    }
    asked = _asked(rows)
    prompts = [qa.prompt_ids(row[column]) for name, column in asked for row in rows[name]]
    kept = KeptPrompts(prompts)
    scores, known_beginnings = _score(model, qa, habits, rows, attacked, kept=kept, **passes)
    max_new_tokens = _answer_limit(qa, rows, max_new_tokens)
    texts = generate_greedy(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, known=known_beginnings, kept=kept, **passes
    )
    del kept  # what is not taken would lie in memory beside the passes that follow
    generations = _by_question(rows, asked, texts)
    per_example = {name: _columns(name, rows[name], scores[name], generations[name], habits) for name in rows}
    if wagle_mia:
        for name, values in _wagle_mia(model, qa, rows, passes).items():
            per_example[name]["question_answer_min_50"] = values
    for name in attacked:
        answers = [habits.answer_text(qa, row["question"], row["answer"]) for row in rows[name]]
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
    against, missing = _compare(per_example, known, non_members, habits)
    settings = {
        "suite": "tofu",
        **describe_model(model),
        "style": qa.style,
        "compatibility": compatibility,
        "qa_format": qa.describe(),
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "examples": {name: len(rows[name]) for name in rows},
        "non_members": non_members if attacked else None,
        "missing": missing,
        "warnings": _warnings(rows["forget"], per_example["forget"], "forget_quality" in against),
    }
    return {**Tofu().numbers(per_example, settings), **against, "per_example": per_example, "settings": settings}


def _read(datasets: Mapping[str, Iterable[Row]], name: str) -> list[Row]:
    needed = ["question", "answer"]
    if name in _TRUTH_COLUMN:
        needed += ["perturbed_answer", _TRUTH_COLUMN[name]]
    return read_set(datasets, name, needed)


def _read_reference(
    reference: Mapping[str, Any] | str | PathLike[str], rows: Mapping[str, list[Row]]
) -> dict[str, Columns]:
    """The reference's per-example values of the forget set and of those non-members that are the same here."""
    from wagle_trainer.evaluation.results import load_results

    results = reference if isinstance(reference, Mapping) else load_results(reference)
    try:
        per_example: dict[str, Columns] = results["per_example"]
        number = len(per_example["forget"]["log_truth_ratio"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            "The reference must be what evaluate_tofu returned for a retrained model: it has no per-example values of "
            "the forget set."
        ) from error
    if not _same_questions(per_example["forget"], rows["forget"]):
        raise ValueError(
            f"The reference was made on other forget questions ({number} of them, here "
            f"{len(rows['forget'])}): evaluate the retrained model on the same forget set."
        )
    return {
        name: columns for name, columns in per_example.items() if name in rows and _same_questions(columns, rows[name])
    }


def _same_questions(columns: Columns, rows: list[Row]) -> bool:
    """Whether values per example are of these rows; results without texts tell only how many there were."""
    if "question" not in columns:
        return all(len(values) == len(rows) for values in columns.values())
    return columns["question"] == [row["question"] for row in rows]


def _scored_columns(name: str, rows: list[Row]) -> list[str]:
    """The columns whose answers are scored."""
    if name not in _TRUTH_COLUMN:
        return ["answer"]
    columns = list(dict.fromkeys(("answer", _TRUTH_COLUMN[name], "perturbed_answer")))
    if name == "forget" and all(row.get("paraphrased_question") for row in rows):
        columns.append(_PARAPHRASED_QUESTION)
    return columns


def _score(
    model: Any, qa: QAFormat, habits: Habits, rows: Mapping[str, list[Row]], attacked: Sequence[str], **options: Any
) -> tuple[dict[str, Scores], dict[tuple[int, ...], list[int]]]:
    """Scores of every answer: set -> column -> row -> one score, or one for each perturbed answer.

    Also what the scores tell of the greedy answer to each prompt. Membership inference on the `attacked` sets needs the
    vocabulary's moments.
    """
    from wagle_trainer.evaluation.answer_scores import greedy_beginnings, score_answers

    examples, names, vocabulary = [], [], []
    for name in rows:
        for column in _scored_columns(name, rows[name]):
            for index, row in enumerate(rows[name]):
                question = row["paraphrased_question" if column == _PARAPHRASED_QUESTION else "question"]
                for answer in _answers(row, column):
                    examples.append(habits.encode(qa, question, answer))
                    names.append(f"set {name!r}, row {index}, {column}")
                    vocabulary.append(name in attacked and column == "answer")
    end = habits.end(qa.tokenizer)
    found = score_answers(model, examples, names, eos_token_id=end, tokens=True, vocabulary=vocabulary, **options)
    scored = iter(found)
    scores = {
        name: {
            column: [[next(scored) for _ in _answers(row, column)] for row in rows[name]]
            for column in _scored_columns(name, rows[name])
        }
        for name in rows
    }
    return scores, greedy_beginnings(examples, found)


def _answers(row: Row, column: str) -> list[str]:
    answer = row["answer" if column == _PARAPHRASED_QUESTION else column]
    return answer if isinstance(answer, list) else [answer]


def _asked(rows: Mapping[str, list[Row]]) -> list[tuple[str, str]]:
    """Sets and columns of the questions that are answered."""
    questions = [(name, "question") for name in _TRUTH_COLUMN]
    if _PARAPHRASED_QUESTION in _scored_columns("forget", rows["forget"]):
        questions.append(("forget", "paraphrased_question"))
    return questions


def _answer_limit(qa: QAFormat, rows: Mapping[str, list[Row]], max_new_tokens: int) -> int:
    from wagle_trainer.evaluation.generation import answer_limit

    labels = [qa.encode(row["question"], row["answer"])["labels"] for name in _TRUTH_COLUMN for row in rows[name]]
    return answer_limit(labels, max_new_tokens)


def _by_question(
    rows: Mapping[str, list[Row]], asked: Sequence[tuple[str, str]], texts: Iterable[str]
) -> dict[str, dict[str, list[str]]]:
    """Answers to every question: set -> column of the question -> row."""
    left = iter(texts)
    generations: dict[str, dict[str, list[str]]] = {name: {} for name in rows}
    for name, column in asked:
        generations[name][column] = [next(left) for _ in rows[name]]
    return generations


def _columns(
    name: str, rows: list[Row], scores: Scores, generations: Mapping[str, list[str]], habits: Habits
) -> Columns:
    """What is known of each row of a set, by column.

    Args:
        name: of the set; others than TOFU's four have nothing but an answer.
        rows: questions and answers.
        scores: column of the answers -> row -> one score for each.
        generations: column of the question -> row -> what the model answered.
        habits: of the code whose numbers are wanted.
    """
    log_probs = {
        column: [[score.mean_log_prob for score in row] for row in by_row] for column, by_row in scores.items()
    }
    answers = [row["answer"] for row in rows]
    answer = [value for [value] in log_probs["answer"]]
    columns: Columns = {
        "question": [row["question"] for row in rows],
        "answer": answers,
        "answer_log_prob": answer,
        **groups_of(rows),
    }
    if habits.at_least_one_token:
        columns["extraction_strength"] = [
            metrics.extraction_strength(score.is_top1 or [], at_least_one_token=True) for [score] in scores["answer"]
        ]
    responses = [
        Response(row["question"], row["answer"], score) for row, [score] in zip(rows, scores["answer"], strict=True)
    ]
    if name in _TRUTH_COLUMN:
        truth = [value for [value] in log_probs[_TRUTH_COLUMN[name]]]
        wrong = log_probs["perturbed_answer"]
        normalised = name in ("real_authors", "world_facts")
        probability = (
            metrics.probability_with_options(answer, wrong, epsilon=habits.epsilon)
            if normalised
            else metrics.answer_probability(answer)
        )
        texts = generations["question"]
        columns |= {
            "generation": texts,
            "probability": probability.tolist(),
            "log_truth_ratio": metrics.log_truth_ratio(truth, wrong, epsilon=habits.epsilon).tolist(),
            "rouge_l_f1": metrics.rouge_l_f1(texts, answers, use_stemmer=True).tolist(),
            "truth_log_prob": truth,
            "perturbed_log_probs": wrong,
        }
        for index, response in enumerate(responses):
            response.generation = texts[index]
            [response.truth], response.wrong = scores[_TRUTH_COLUMN[name]][index], scores["perturbed_answer"][index]
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
            "paraphrased_question_log_prob": [value for [value] in log_probs[_PARAPHRASED_QUESTION]],
            "paraphrased_question_rouge_l_recall": metrics.rouge_l_recall(texts, answers).tolist(),
        }
    add_columns(columns, responses, TOFU_METRICS)
    return columns


def _compare(
    per_example: dict[str, Columns], known: Mapping[str, Columns] | None, non_members: str, habits: Habits
) -> tuple[dict[str, float], dict[str, str]]:
    """The numbers that compare with a reference; why others are missing, and what to do.

    Adds the scores of the reference attack to the examples.
    """
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    forget, others = per_example["forget"], per_example.get(non_members, {})
    if known is None:
        missing["forget_quality"] = MAKE_REFERENCE
    else:
        found["forget_quality"] = metrics.forget_quality(forget["log_truth_ratio"], known["forget"]["log_truth_ratio"])
    if "mia_loss" not in others:
        return found, missing | dict.fromkeys((*_ATTACKS, "mia_reference", "privleak"), _MAKE_HOLDOUT)
    if known is None:
        return found, missing | dict.fromkeys(("mia_reference", "privleak"), MAKE_REFERENCE)
    if not all("mia_min_k" in known.get(name, {}) for name in ("forget", non_members)):
        return found, missing | dict.fromkeys(
            ("mia_reference", "privleak"),
            f"the reference was not measured on these {non_members} examples: evaluate the retrained model on the same "
            f"sets, with non_members={non_members!r}",
        )
    for name in ("forget", non_members):
        local, reference = per_example[name]["mia_loss"], known[name]["mia_loss"]
        per_example[name]["mia_reference"] = metrics.reference_score(local, reference).tolist()
    auc, reference_auc = (
        metrics.roc_auc(sets["forget"]["mia_min_k"], sets[non_members]["mia_min_k"]) for sets in (per_example, known)
    )
    if habits.epsilon:
        found["privleak"] = (reference_auc - auc) / (1 - reference_auc + habits.epsilon) * 100
    elif reference_auc < 1:
        found["privleak"] = metrics.privacy_leakage(auc, reference_auc)
    else:
        missing["privleak"] = (
            "min-k tells forget and holdout set apart on the reference, too, which saw neither (AUC 1): they differ in "
            "more than membership, so there is nothing to compare leakage with; take more rows, or others"
        )
    return found, missing


def _warnings(rows: list[Row], forget: Columns, has_quality: bool) -> dict[str, str]:
    """Why numbers of the forget set may mislead, by their name."""
    found: dict[str, str] = {}
    size = rows[0].get("set_size") or len(rows)
    if has_quality and len(rows) < size:
        found["forget_quality"] = (
            f"is the p-value of {len(rows)} of {size} rows: it rises as rows are left out, so it does not compare with "
            "values of the full set"
        )
    truth = np.array(forget["truth_log_prob"])
    collapsed = int((truth < np.log(_IMPOSSIBLE)).sum())
    if collapsed:
        published = np.exp(
            -np.abs(metrics.log_truth_ratio(truth, forget["perturbed_log_probs"], epsilon=1e-10))
        ).mean()
        text = (
            f"compares probabilities near zero: in {collapsed} of {len(rows)} rows the true answer is less likely than "
            f"{_IMPOSSIBLE:g} per token, so true and wrong answers look alike although the model has collapsed; with "
            f"OpenUnlearning's 1e-10 in the denominator the forget truth ratio is {published:.2g}"
        )
        found["forget_truth_ratio"] = text
        if has_quality:
            found["forget_quality"] = "; ".join(filter(None, [found.get("forget_quality"), text]))
    return found


def _wagle_mia(
    model: Any, qa: QAFormat, rows: Mapping[str, list[Row]], passes: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Min-50% Prob over question and answer, as WAGLE's code scores membership: set -> one number for each row."""
    from wagle_trainer.evaluation.answer_scores import score_answers

    texts = [(name, index, row) for name in ("forget", "retain") for index, row in enumerate(rows[name])]
    examples = []
    for _, _, row in texts:
        ids = qa.encode(row["question"], row["answer"])["input_ids"]
        examples.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    names = [f"set {name!r}, row {index}" for name, index, _ in texts]
    scores = score_answers(model, examples, names, eos_token_id=None, tokens=True, **passes)
    found: dict[str, list[float]] = {"forget": [], "retain": []}
    for (name, _, _), score in zip(texts, scores, strict=True):
        found[name].append(metrics.min_k(score.token_log_probs or [], k=0.5))
    return found
