"""MUSE's evaluation (Shi et al. 2024, arXiv 2407.06460): what is left of news articles or books, and of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.suites.response import Response, add_columns
from wagle_trainer.evaluation.suites.suite import Suite, register_suite
from wagle_trainer.evaluation.suites.suite_inputs import (
    MAKE_REFERENCE,
    Row,
    continuation,
    describe_model,
    groups_of,
    read_set,
    text_ids,
)
from wagle_trainer.evaluation.suites.suite_metric import Auc, SuiteMetric, mean_of

_COLUMNS = {
    "verbmem_forget": ("prompt", "gt"),
    "knowmem_forget": ("question", "answer"),
    "knowmem_retain": ("question", "answer"),
    "privleak_forget": ("text",),
    "privleak_holdout": ("text",),
}
_KNOWMEM = ("knowmem_forget", "knowmem_retain")
_PRIVLEAK = ("privleak_forget", "privleak_holdout")
MAKE_PRIVLEAK = (
    "needs the sets privleak_forget and privleak_holdout (in a folder: privleak/forget and privleak/holdout)"
)
# Few-shot prompts make models go on with questions of their own; these are the marks that MUSE cuts an answer at.
_ANSWER_ENDS = ("\n\n", "\nQuestion", "Question:")


MUSE_METRICS = (
    mean_of(
        "forget_verbmem_ROUGE",
        "verbmem_forget",
        "rouge_l_f1",
        "C1: ROUGE-L F1 of the greedy continuation of forget texts; the paper prints it times 100.",
        forget="lower",
        main=True,
        head=("forget", "verbmem"),
    ),
    mean_of(
        "forget_knowmem_ROUGE",
        "knowmem_forget",
        "rouge_l_f1",
        "C2: ROUGE-L F1 of greedy answers about the forget texts; the paper prints it times 100.",
        forget="lower",
        head=("forget", "knowmem"),
    ),
    mean_of(
        "retain_knowmem_ROUGE",
        "knowmem_retain",
        "rouge_l_f1",
        "C4: ROUGE-L F1 of greedy answers about the retain texts; the paper prints it times 100.",
        utility="higher",
        main=True,
        head=("retain", "knowmem"),
    ),
    mean_of(
        "extraction_strength",
        "verbmem_forget",
        "extraction_strength",
        "1 less the share of the continuation that recalls its rest.",
        forget="lower",
    ),
    mean_of(
        "exact_memorization",
        "verbmem_forget",
        "exact_memorization",
        "Share of the continuation's tokens that are the most likely ones.",
        forget="lower",
    ),
    SuiteMetric(
        "mia_min_k",
        Auc("min_k", "privleak_forget", "privleak_holdout"),
        "AUC of membership inference by Min-40% Prob; 1 if every forget text is likelier than every holdout text. The paper "
        "counts the other way round, 1 - AUC.",
        head=("min-k", "AUC"),
    ),
    *(
        SuiteMetric(name, Auc(name, "privleak_forget", "privleak_holdout"), f"AUC of membership inference by {what}.")
        for name, what in (
            ("mia_loss", "loss"),
            ("mia_zlib", "loss over compressed size"),
            ("mia_min_k_plus_plus", "Min-40%++"),
            ("mia_gradnorm", "gradient norm"),
            ("mia_reference", "loss less that of a retrained model"),
        )
    ),
    SuiteMetric(
        "privleak",
        None,
        "C3: privacy leakage in percent, `mia_min_k` compared with that of a retrained model; 0 is best, -100: the forget "
        "set is still recognised as known, far above 0: it stands out as unknown.",
        head=("privacy", "leakage"),
        range=(-100.0, float("inf")),
    ),
)


@register_suite("muse")
class Muse(Suite):
    """MUSE (Shi et al. 2024, arXiv 2407.06460): verbatim and knowledge memorisation of news or books, privacy leakage.

    `privleak` is best at zero, and `mia_min_k` where it is for a retrained model: they are in the table only.
    """

    metrics: ClassVar = MUSE_METRICS

    def load(self, data: str, *, few_shot: bool = True, limit: int | None = None) -> Any:
        """The sets, see `load_muse_evaluation`.

        Args:
            data: a hub id (`"muse-bench/MUSE-News"`, `"muse-bench/MUSE-Books"`), or a folder laid out like them.
            few_shot: show questions with their answers before each question.
            limit: rows of each set; None for all.
        """
        from wagle_trainer.data.muse import load_muse_evaluation

        return load_muse_evaluation(data, few_shot=few_shot, limit=limit)

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_muse`."""
        return evaluate_muse(model, tokenizer, data, **kwargs)


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
    gradient_norm: bool = False,
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
            (`text`; without both there is no privacy leakage); and, if few-shot examples are wanted, "knowmem_forget_icl" and
            "knowmem_retain_icl".
        batch_size: texts per forward pass and prompts that enter generation at once; results do not depend on it.
        verbmem_tokens: tokens generated after a prompt of verbmem, and tokens of `gt` that they are compared with; as in
            MUSE's code, what the tokenizer puts before a text counts among the latter.
        knowmem_tokens: tokens after which an answer is cut off.
        min_k: share of a text's tokens that its score is the mean of.
        reference: what this function returned for a model retrained without the forget set, or the path of its JSON;
            without it there is no privleak and no reference attack.
        gradient_norm: also run the gradient-norm attack, a backward pass for each text.
        across_processes: shard the work over accelerate's processes. All have to call this with the same arguments;
            all get the same results.
        progress: show progress bars.

    Returns:
        A dict that JSON can hold: the metrics by name, see `get_suite("muse").describe()`; `per_example`, for each set lists
        in the order of its rows: question, answer, generation and rouge_l_f1, or the scores of the attacks, the lower the
        better known; and `settings`, without a reference with "missing": what privleak needs.

    Raises:
        ValueError: a set or column is missing or empty (the message names it), or the reference is no such result, was
            made on other sets, or tells forget and holdout set apart by itself (AUC 1); or
            `min_k` is out of range.
        FloatingPointError: a log-probability is not finite.
    """
    from wagle_trainer.evaluation.answer_scores import greedy_beginnings, score_answers
    from wagle_trainer.evaluation.membership_attacks import gradient_norms, membership_scores

    if not 0 < min_k <= 1:
        raise ValueError(f"min_k must be in (0, 1], not {min_k}.")
    private = _PRIVLEAK if any(name in datasets for name in _PRIVLEAK) else ()
    rows = {
        name: read_set(datasets, name, columns)
        for name, columns in _COLUMNS.items()
        if name in private or name not in _PRIVLEAK
    }
    shown = {name: _examples(datasets, f"{name}_icl") for name in _KNOWMEM}
    passes: dict[str, Any] = {"batch_size": batch_size, "across_processes": across_processes, "progress": progress}
    settings: dict[str, Any] = {
        "suite": "muse",
        **describe_model(model),
        "batch_size": batch_size,
        "verbmem_tokens": verbmem_tokens,
        "knowmem_tokens": knowmem_tokens,
        "min_k": min_k,
        "few_shot": {name: len(examples) for name, examples in shown.items()},
        "examples": {name: len(rows[name]) for name in rows},
    }
    known = None if reference is None or not private else _read_reference(reference, settings)

    verbmem = rows["verbmem_forget"]
    texts = [(name, index, row["text"]) for name in private for index, row in enumerate(rows[name])]
    examples = [continuation(text_ids(tokenizer, text), 1) for _, _, text in texts]
    names = [f"set {name!r}, row {index}" for name, index, _ in texts]
    continued = [_continued(tokenizer, row, verbmem_tokens) for row in verbmem]
    scored = score_answers(
        model,
        [*examples, *continued],
        [*names, *(f"set 'verbmem_forget', row {index}" for index in range(len(verbmem)))],
        eos_token_id=None,
        tokens=True,
        vocabulary=[*(True for _ in examples), *(False for _ in continued)],
        **passes,
    )
    beginnings = greedy_beginnings(continued, scored[len(examples) :])
    scores = iter(scored)
    per_example: dict[str, dict[str, list[Any]]] = {}
    for name in private:
        mine = [next(scores) for _ in rows[name]]
        attacks = membership_scores(mine, [row["text"] for row in rows[name]], k=min_k)
        per_example[name] = {"min_k": attacks.pop("mia_min_k"), **attacks, **groups_of(rows[name])}
    if gradient_norm and private:
        norms = iter(
            gradient_norms(
                model, examples, names, eos_token_id=None, across_processes=across_processes, progress=progress
            )
        )
        for name in private:
            per_example[name]["mia_gradnorm"] = [next(norms) for _ in rows[name]]
    per_example["verbmem_forget"] = _verbmem(model, tokenizer, verbmem, verbmem_tokens, beginnings, passes)
    responses = [Response(row["prompt"], row["gt"], next(scores)) for row in verbmem]
    add_columns(per_example["verbmem_forget"], responses, MUSE_METRICS)
    per_example |= _knowmem(model, tokenizer, {name: rows[name] for name in _KNOWMEM}, shown, knowmem_tokens, passes)
    for name in ("verbmem_forget", *_KNOWMEM):
        per_example[name] |= groups_of(rows[name])

    losses = {} if known is None else known.get("per_example", {})
    for name in private:
        theirs = losses.get(name, {}).get("mia_loss")
        if theirs is not None and all("mia_loss" in losses.get(other, {}) for other in _PRIVLEAK):
            per_example[name]["mia_reference"] = metrics.reference_score(
                per_example[name]["mia_loss"], theirs
            ).tolist()
    numbers = Muse().numbers(per_example, settings)
    if not private:
        settings["missing"] = dict.fromkeys(("mia_min_k", "privleak"), MAKE_PRIVLEAK)
    elif known is None:
        settings["missing"] = dict.fromkeys(("privleak", "mia_reference"), MAKE_REFERENCE)
    else:
        numbers["privleak"] = metrics.privacy_leakage(numbers["mia_min_k"], known["mia_min_k"])
    return {**numbers, "per_example": per_example, "settings": settings}


def _examples(datasets: Mapping[str, Iterable[Row]], name: str) -> list[Row]:
    return read_set(datasets, name, ("question", "answer")) if name in datasets else []


def _read_reference(
    reference: Mapping[str, Any] | str | PathLike[str], settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    from wagle_trainer.evaluation.results import load_results

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
    metrics.privacy_leakage(0.5, auc)  # refuses what nothing can be compared with: now, not after the evaluation
    return results


def _continued(tokenizer: Any, row: Row, tokens: int) -> dict[str, list[int]]:
    """A prompt of verbmem with the text that follows it, a space between the two, as OpenUnlearning scores them."""
    prompt = text_ids(tokenizer, row["prompt"])
    return continuation(text_ids(tokenizer, f"{row['prompt']} {row['gt']}")[: len(prompt) + tokens], len(prompt))


def _verbmem(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    tokens: int,
    known: Mapping[tuple[int, ...], Sequence[int]],
    passes: Mapping[str, Any],
) -> dict[str, list[Any]]:
    from wagle_trainer.evaluation.generation import generate_greedy

    prompts = [row["prompt"] for row in rows]
    answers = [
        # As in MUSE's code, tokens at the start of a text, such as BOS, count among these and are then left out.
        tokenizer.decode(text_ids(tokenizer, row["gt"])[:tokens], skip_special_tokens=True)
        for row in rows
    ]
    ids = [text_ids(tokenizer, prompt) for prompt in prompts]
    generations = generate_greedy(model, tokenizer, ids, max_new_tokens=tokens, known=known, **passes)
    return _compared(prompts, answers, generations)


def _knowmem(
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Sequence[Row]],
    examples: Mapping[str, Sequence[Row]],
    tokens: int,
    passes: Mapping[str, Any],
) -> dict[str, dict[str, list[Any]]]:
    from wagle_trainer.evaluation.generation import generate_greedy

    shown = {
        name: "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in examples[name])
        for name in rows
    }
    found = {}
    for name in rows:  # one after the other, so that the examples shown are computed once for all prompts of a set
        prompts = [text_ids(tokenizer, f"{shown[name]}Question: {row['question']}\nAnswer: ") for row in rows[name]]
        texts = generate_greedy(model, tokenizer, prompts, max_new_tokens=tokens, ends=_ANSWER_ENDS, **passes)
        questions, answers = ([row[column] for row in rows[name]] for column in ("question", "answer"))
        found[name] = _compared(questions, answers, texts)
    return found


def _compared(questions: list[str], answers: list[str], generations: list[str]) -> dict[str, list[Any]]:
    return {
        "question": questions,
        "answer": answers,
        "generation": generations,
        "rouge_l_f1": metrics.rouge_l_f1(generations, answers).tolist(),
    }
