"""A suite for one's own data: questions and answers, messages, prompts and completions, or passages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from wagle_trainer.evaluation.suites.response import Response, add_columns
from wagle_trainer.evaluation.suites.suite import Suite, register_suite
from wagle_trainer.evaluation.suites.suite_inputs import Row, describe_model, groups_of
from wagle_trainer.evaluation.suites.suite_metric import Auc, SuiteMetric, mean_of

if TYPE_CHECKING:  # it needs a tokenizer's package
    from wagle_trainer.data.qa_format import QAFormat

_SETS = ("forget", "retain", "unseen")
# Stem of the metric's name, column, second line of the head, description.
_MEASURED = (
    ("Prob", "probability", "prob", "Probability of the answer: exp(mean log-probability per token)."),
    ("ROUGE", "rouge_l_recall", "ROUGE-L", "ROUGE-L recall of the greedy answer."),
    (
        "extraction_strength",
        "extraction_strength",
        "extraction",
        "1 less the share of the answer that recalls its rest.",
    ),
    ("exact_memorization", "exact_memorization", None, "Share of the answer's tokens that are the most likely ones."),
    (
        "verbatim",
        "verbatim_prefix",
        "verbatim",
        "Share of the answer's tokens reproduced before the first that differs.",
    ),
)


def _metric(name: str, stem: str, column: str, second: str | None, description: str) -> SuiteMetric:
    main = stem == "Prob"
    shown = name == "forget" or column in ("probability", "rouge_l_recall")
    head = (name, second) if second is not None and shown else None
    sides: dict[str, Any] = {
        "forget": {"forget": "lower", "main": main},
        "retain": {"utility": "higher", "main": main},
    }
    return mean_of(f"{name}_{stem}", name, column, description, head=head, **sides.get(name, {}))


CUSTOM_METRICS = (
    *(_metric(name, *measured) for name in _SETS for measured in _MEASURED),
    *(
        SuiteMetric(name, Auc(name, "forget", "unseen"), f"AUC of membership inference by {what}; 0.5 is best.")
        for name, what in (
            ("mia_loss", "loss"),
            ("mia_zlib", "loss over compressed size"),
            ("mia_min_k", "Min-40% Prob"),
            ("mia_min_k_plus_plus", "Min-40%++"),
        )
    ),
)


@register_suite("custom")
class Custom(Suite):
    """Custom: your own forget, retain and unseen rows: how likely, how well repeated, how extractable the answers are."""

    takes_qa_format: ClassVar = True
    metrics: ClassVar = CUSTOM_METRICS

    def load(
        self,
        data: str,
        *,
        retain: str | None = None,
        unseen: str | None = None,
        limit: int | None = None,
        **columns: str | None,
    ) -> Any:
        """The sets.

        Args:
            data: the forget file, in any shape that `wagle_trainer.data.read_examples` knows.
            retain: the file of what the model should keep.
            unseen: the file of rows like those to forget that no model was trained on.
            limit: rows of each set, drawn evenly over groups; None for all.
            **columns: `question_column`, `answer_column`, `text_column`, `group_column` and `encoding`, as for
                `read_examples`.
        """
        from wagle_trainer.data.reading import read_examples
        from wagle_trainer.evaluation.own_rows import measured_rows

        files = {"forget": data, "retain": retain, "unseen": unseen}
        return {
            name: measured_rows(read_examples(file, **columns), name, limit)
            for name, file in files.items()
            if file is not None
        }

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_custom`."""
        return evaluate_custom(model, tokenizer, data, **kwargs)


def evaluate_custom(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Iterable[Row]],
    *,
    style: Literal["auto", "chat", "plain"] = "auto",
    qa_format: QAFormat | None = None,
    prompt_tokens: int = 50,
    continuation_tokens: int = 100,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Probability, ROUGE, extraction strength, memorisation and verbatim continuation of your own rows.

    What each number is: `get_suite("custom").describe()`. A row is one of these:

    - `question` and `answer`;
    - `prompt` and `completion`, as text or as messages;
    - `messages`: the answer is the last turn of the assistant, the turns before it are the prompt;
    - `text`, a passage: the first tokens are the prompt, what follows is the answer.

    Args:
        model: a causal language model, Transformers or PEFT, on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        datasets: "forget" and, if there are any, "retain" and "unseen", rows like those to forget that no model was
            trained on: membership inference compares the two. A column `group` says which rows belong together.
        style: how questions and answers become text, see `QAFormat`.
        qa_format: the same as an object, for a system prompt or a template's arguments; `style` plays no part then.
        prompt_tokens: tokens of a passage that the model gets; half of a passage that is shorter than twice that.
        continuation_tokens: tokens of a passage after them that are the answer, at most.
        max_new_tokens: a generated answer ends after so many tokens, or after three times the longest true answer if
            that is less.
        batch_size: examples per forward pass and prompts that enter generation at once; results do not depend on it.
        across_processes: shard the work over accelerate's processes. All have to call this with the same arguments;
            all get the same results.
        progress: show progress bars.

    Returns:
        A dict that JSON can hold: the metrics by name; `per_example`, for each set lists in the order of its rows
        (question, answer, generation, probability, ...); and `settings`.

    Raises:
        ValueError: there is no forget set, a set is empty or has another name, a row is of no known kind, or a chat
            template refuses it; the message names set and row.
        FloatingPointError: a log-probability is not finite.
    """
    from wagle_trainer.data.qa_format import QAFormat
    from wagle_trainer.evaluation.answer_scores import greedy_beginnings, score_answers
    from wagle_trainer.evaluation.generation import answer_limit, generate_greedy
    from wagle_trainer.evaluation.membership_attacks import membership_scores
    from wagle_trainer.evaluation.own_rows import encode_row

    for name, value in (("prompt_tokens", prompt_tokens), ("continuation_tokens", continuation_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    rows = _read(datasets)
    qa = qa_format if qa_format is not None else QAFormat.for_tokenizer(tokenizer, style=style)
    examples = {
        name: [
            encode_row(qa, row, f"Row {index} of the {name} set", prompt_tokens, continuation_tokens)
            for index, row in enumerate(rows[name])
        ]
        for name in rows
    }
    everything = [(name, index, example) for name in rows for index, example in enumerate(examples[name])]
    passes: dict[str, Any] = {"batch_size": batch_size, "across_processes": across_processes, "progress": progress}
    encoded = [example.encoded for _, _, example in everything]
    scored = score_answers(
        model,
        encoded,
        [f"set {name!r}, row {index}" for name, index, _ in everything],
        eos_token_id=tokenizer.eos_token_id,
        tokens=True,
        vocabulary=["unseen" in rows and name in ("forget", "unseen") for name, _, _ in everything],
        **passes,
    )
    scores = iter(scored)
    limit = answer_limit([example["labels"] for example in encoded], max_new_tokens)
    prompts = [example.prompt for _, _, example in everything]
    beginnings = greedy_beginnings(encoded, scored)
    texts = iter(generate_greedy(model, tokenizer, prompts, max_new_tokens=limit, known=beginnings, **passes))
    per_example: dict[str, dict[str, list[Any]]] = {}
    for name in rows:
        responses = [Response(e.question, e.answer, next(scores), next(texts)) for e in examples[name]]
        log_probs = [response.score.mean_log_prob for response in responses if response.score is not None]
        per_example[name] = {
            "question": [response.question for response in responses],
            "answer": [response.answer for response in responses],
            "generation": [response.generation for response in responses],
            "answer_log_prob": log_probs,
            "probability": np.exp(log_probs).tolist(),
            **groups_of(rows[name]),
        }
        add_columns(per_example[name], responses, CUSTOM_METRICS)
        if "unseen" in rows and name in ("forget", "unseen"):
            known = [response.score for response in responses if response.score is not None]
            per_example[name] |= membership_scores(known, [response.answer for response in responses])
    settings = {
        "suite": "custom",
        **describe_model(model),
        "style": qa.style,
        "qa_format": qa.describe(),
        "batch_size": batch_size,
        "prompt_tokens": prompt_tokens,
        "continuation_tokens": continuation_tokens,
        "max_new_tokens": limit,
        "examples": {name: len(rows[name]) for name in rows},
    }
    return {**Custom().numbers(per_example, settings), "per_example": per_example, "settings": settings}


def _read(datasets: Mapping[str, Iterable[Row]]) -> dict[str, list[Row]]:
    unknown = sorted(set(datasets) - set(_SETS))
    if unknown or "forget" not in datasets:
        raise ValueError(
            f"The sets are 'forget' and, if there are any, 'retain' and 'unseen'; given are {', '.join(datasets) or 'none'}."
        )
    rows = {name: list(datasets[name]) for name in _SETS if name in datasets}
    for name, found in rows.items():
        if not found:
            raise ValueError(f"The {name} set is empty.")
    return rows
