"""MUSE's evaluation (Shi et al. 2024, arXiv 2407.06460): what is left of news articles or books, and of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from statistics import fmean
from typing import Any

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.answer_scores import score_answers
from wagle_trainer.evaluation.generation import generate_greedy
from wagle_trainer.evaluation.results import load_results
from wagle_trainer.evaluation.suite_inputs import MAKE_REFERENCE, Row, continuation, describe_model, read_set, text_ids

_COLUMNS = {
    "verbmem_forget": ("prompt", "gt"),
    "knowmem_forget": ("question", "answer"),
    "knowmem_retain": ("question", "answer"),
    "privleak_forget": ("text",),
    "privleak_holdout": ("text",),
}
_KNOWMEM = ("knowmem_forget", "knowmem_retain")
_PRIVLEAK = ("privleak_forget", "privleak_holdout")
# Few-shot prompts make models go on with questions of their own; these are the marks that MUSE cuts an answer at.
_ANSWER_ENDS = ("\n\n", "\nQuestion", "Question:")


def evaluate_muse(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Iterable[Row]],
    *,
    batch_size: int = 32,
    verbmem_tokens: int = 128,
    knowmem_tokens: int = 32,
    min_k: float = 0.4,
    reference: Mapping[str, Any] | str | PathLike[str] | None = None,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Verbatim memorisation, knowledge memorisation, utility and privacy leakage: criteria C1 to C4 of the paper.

    Definitions are those of the paper and its code: ROUGE-L F1 without stemming for both kinds of memorisation, and
    for privacy the mean negative log-probability of a text's 40 % least likely tokens ("Min-40% Prob"). Texts are
    tokenized as they are, without chat template. As there, questions end in "Answer: " with its space, which
    tokenizers whose words begin with a space make a token of its own: small models answer worse for it. There is one
    scoring pass, and one generation pass for each of the two lengths. C5 and C6 are this evaluation repeated, see
    `request_curve`.

    Args:
        model: a causal language model, Transformers or PEFT, on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        datasets: as `load_muse_evaluation` gives them: "verbmem_forget" (rows with `prompt` and `gt`),
            "knowmem_forget" and "knowmem_retain" (`question`, `answer`), "privleak_forget" and "privleak_holdout"
            (`text`); and, if examples are to be shown before the questions, "knowmem_forget_icl" and
            "knowmem_retain_icl".
        batch_size: texts per forward pass and prompts per generation batch; results do not depend on it.
        verbmem_tokens: tokens generated after a prompt of verbmem, and tokens of `gt` that they are compared with.
        knowmem_tokens: tokens after which an answer is cut off.
        min_k: share of a text's tokens that its score is the mean of.
        reference: what this function returned for a model retrained without the forget set, or the path of its JSON;
            without it there is no privleak.
        across_processes: deal the work out over accelerate's processes. All have to call this with the same arguments;
            all get the same results.
        progress: show progress bars.

    Returns:
        A dict that JSON can hold:

        - forget_verbmem_ROUGE (C1), forget_knowmem_ROUGE (C2), retain_knowmem_ROUGE (C4), each a mean in [0, 1]; the
          paper prints them times 100;
        - mia_min_k: how well the score tells the forget set from the holdout set, as area under the ROC curve; 1 if it
          finds every forget text likelier than every holdout text. The paper counts the other way round, 1 - AUC;
        - with a reference privleak (C3) in percent: near 0 like the retrained model, down to -100 where the forget
          set still stands out as known, far above 0 where it stands out as unknown;
        - per_example: for each set lists in the order of its rows: question, answer, generation and rouge_l_f1, or
          min_k in nats, the lower the better known;
        - settings: what was used, and without a reference under "missing" what privleak needs.

    Raises:
        ValueError: a set or column is missing or empty (the message names it), or the reference is no such result, was
            made on other sets, or tells forget and holdout set apart by itself (AUC 1); or
            `min_k` is out of range.
        FloatingPointError: a log-probability is not finite.
    """
    if not 0 < min_k <= 1:
        raise ValueError(f"min_k must be in (0, 1], not {min_k}.")
    rows = {name: read_set(datasets, name, columns) for name, columns in _COLUMNS.items()}
    examples = {name: _examples(datasets, f"{name}_icl") for name in _KNOWMEM}
    passes: dict[str, Any] = {"batch_size": batch_size, "across_processes": across_processes, "progress": progress}
    settings: dict[str, Any] = {
        **describe_model(model),
        "batch_size": batch_size,
        "verbmem_tokens": verbmem_tokens,
        "knowmem_tokens": knowmem_tokens,
        "min_k": min_k,
        "few_shot": {name: len(shown) for name, shown in examples.items()},
        "examples": {name: len(rows[name]) for name in rows},
    }
    reference_auc = None if reference is None else _reference_auc(reference, settings)

    texts = [(name, index, row["text"]) for name in _PRIVLEAK for index, row in enumerate(rows[name])]
    scores = iter(
        score_answers(
            model,
            [continuation(text_ids(tokenizer, text), 1) for _, _, text in texts],
            [f"set {name!r}, row {index}" for name, index, _ in texts],
            eos_token_id=None,
            tokens=True,
            **passes,
        )
    )
    per_example: dict[str, dict[str, list[Any]]] = {
        "verbmem_forget": _verbmem(model, tokenizer, rows["verbmem_forget"], verbmem_tokens, passes),
        **_knowmem(model, tokenizer, {name: rows[name] for name in _KNOWMEM}, examples, knowmem_tokens, passes),
    }
    for name in _PRIVLEAK:
        log_probs = [next(scores).token_log_probs or [] for _ in rows[name]]
        per_example[name] = {"min_k": [metrics.min_k(values, k=min_k) for values in log_probs]}

    results: dict[str, Any] = {
        "forget_verbmem_ROUGE": fmean(per_example["verbmem_forget"]["rouge_l_f1"]),
        "forget_knowmem_ROUGE": fmean(per_example["knowmem_forget"]["rouge_l_f1"]),
        "retain_knowmem_ROUGE": fmean(per_example["knowmem_retain"]["rouge_l_f1"]),
        "mia_min_k": metrics.roc_auc(*(per_example[name]["min_k"] for name in _PRIVLEAK)),
    }
    if reference_auc is None:
        settings["missing"] = {"privleak": MAKE_REFERENCE}
    else:
        results["privleak"] = metrics.privacy_leakage(results["mia_min_k"], reference_auc)
    return {**results, "per_example": per_example, "settings": settings}


def _examples(datasets: Mapping[str, Iterable[Row]], name: str) -> list[Row]:
    return read_set(datasets, name, ("question", "answer")) if name in datasets else []


def _reference_auc(reference: Mapping[str, Any] | str | PathLike[str], settings: Mapping[str, Any]) -> float:
    results = reference if isinstance(reference, Mapping) else load_results(reference)
    try:
        auc, its = results["mia_min_k"], results["settings"]
        same = its["min_k"] == settings["min_k"] and all(
            its["examples"][name] == settings["examples"][name] for name in _PRIVLEAK
        )
    except (KeyError, TypeError) as error:
        raise ValueError("The reference must be what evaluate_muse returned for a retrained model.") from error
    if not same:
        raise ValueError(
            "The reference was made with another min_k or on other privleak sets: evaluate the retrained model on the "
            "same sets with the same settings."
        )
    metrics.privacy_leakage(0.5, auc)  # refuses what nothing can be held against: now, not after the evaluation
    return auc


def _verbmem(
    model: Any, tokenizer: Any, rows: Sequence[Row], tokens: int, passes: Mapping[str, Any]
) -> dict[str, list[Any]]:
    prompts = [row["prompt"] for row in rows]
    answers = [
        tokenizer.decode(
            tokenizer(row["gt"], add_special_tokens=False)["input_ids"][:tokens], skip_special_tokens=True
        )
        for row in rows
    ]
    ids = [text_ids(tokenizer, prompt) for prompt in prompts]
    generations = generate_greedy(model, tokenizer, ids, max_new_tokens=tokens, **passes)
    return _compared(prompts, answers, generations)


def _knowmem(
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Sequence[Row]],
    examples: Mapping[str, Sequence[Row]],
    tokens: int,
    passes: Mapping[str, Any],
) -> dict[str, dict[str, list[Any]]]:
    shown = {
        name: "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in examples[name])
        for name in rows
    }
    prompts = [
        text_ids(tokenizer, f"{shown[name]}Question: {row['question']}\nAnswer: ")
        for name in rows
        for row in rows[name]
    ]
    generations = iter(generate_greedy(model, tokenizer, prompts, max_new_tokens=tokens, ends=_ANSWER_ENDS, **passes))
    return {
        name: _compared(
            [row["question"] for row in rows[name]],
            [row["answer"] for row in rows[name]],
            [next(generations) for _ in rows[name]],
        )
        for name in rows
    }


def _compared(questions: list[str], answers: list[str], generations: list[str]) -> dict[str, list[Any]]:
    return {
        "question": questions,
        "answer": answers,
        "generation": generations,
        "rouge_l_f1": metrics.rouge_l_f1(generations, answers).tolist(),
    }
