"""Perplexity of general text: what suites without questions of their own measure utility by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.suites.suite_inputs import Row, continuation, read_set, text_ids
from wagle_trainer.evaluation.suites.suite_metric import mean_of

SET = "general"
GENERAL_PERPLEXITY = mean_of(
    "general_perplexity",
    SET,
    "log_prob",
    "exp of the mean negative log-probability of the tokens of general texts; every text counts alike.",
    after=metrics.perplexity,
    range=(1.0, float("inf")),
    utility="lower",
    head=("general", "perplexity"),
)
MISSING = "needs the set 'general': rows with the text that the model should go on writing"


def general_columns(
    model: Any, tokenizer: Any, datasets: Mapping[str, Iterable[Row]], **passes: Any
) -> dict[str, list[Any]] | None:
    """The log-probabilities of the set "general", or None where it is not given.

    Args:
        model: a causal language model on its device.
        tokenizer: its tokenizer.
        datasets: with rows of `text` in "general".
        **passes: batch_size, across_processes and progress.

    Returns:
        `row`, and `log_prob`: the mean log-probability of the tokens after the first, in nats.

    Raises:
        ValueError: a row has no text, or no text has two tokens.
    """
    if SET not in datasets:
        return None
    from wagle_trainer.evaluation.answer_scores import score_answers

    ids = [text_ids(tokenizer, row["text"]) for row in read_set(datasets, SET, ("text",))]
    kept = [index for index, tokens in enumerate(ids) if len(tokens) > 1]
    if not kept:
        raise ValueError(f"No text of the evaluation set {SET!r} has two tokens.")
    scores = score_answers(
        model,
        [continuation(ids[index], 1) for index in kept],
        [f"set {SET!r}, row {index}" for index in kept],
        eos_token_id=None,
        **passes,
    )
    return {"row": kept, "log_prob": [score.mean_log_prob for score in scores]}


def add_general(
    per_example: dict[str, dict[str, Any]],
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Iterable[Row]],
    **passes: Any,
) -> dict[str, str]:
    """Add the columns of the set "general" to a suite's examples.

    Args:
        per_example: what the suite has so far.
        model, tokenizer, datasets, **passes: as for `general_columns`.

    Returns:
        The number that is missing and why; nothing where the set is there.
    """
    columns = general_columns(model, tokenizer, datasets, **passes)
    if columns is None:
        return {"general_perplexity": MISSING}
    per_example[SET] = columns
    return {}
