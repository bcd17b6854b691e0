"""Verbatim continuation of passages: those that a model was trained on and is to forget, and others as a control.

The task of the WAGLE paper (arXiv 2410.17509) on Harry Potter, as in its authors' code for SOUL (arXiv 2404.18239): a
passage is cut after some tokens, and what the model generates is compared with how the passage goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.suites import general_text
from wagle_trainer.evaluation.suites.suite import Suite, register_suite
from wagle_trainer.evaluation.suites.suite_inputs import (
    Row,
    continuation,
    describe_model,
    groups_of,
    load_split,
    read_set,
    text_ids,
)
from wagle_trainer.evaluation.suites.suite_metric import SuiteMetric, mean_of

if TYPE_CHECKING:  # it needs torch
    from wagle_trainer.evaluation.answer_scores import AnswerScore

logger = logging.getLogger(__name__)
_SETS = ("seen", "unseen")


def _equals(prefixes: Any, tokens: Any) -> Any:
    return np.equal(prefixes, tokens)


def _metrics_of(name: str, **sides: Any) -> list[SuiteMetric]:
    """The four metrics of one set; `sides`: metric -> how to read it."""
    return [
        mean_of(
            f"{name}_ROUGE",
            name,
            "rouge_l_recall",
            "ROUGE-L recall of the greedy continuation.",
            **sides.get("ROUGE", {}),
        ),
        mean_of(
            f"{name}_exact_match",
            name,
            "common_prefix",
            "Share of the passages whose continuation is reproduced in full.",
            transform=_equals,
            setting="continuation_tokens",
            **sides.get("exact_match", {}),
        ),
        mean_of(
            f"{name}_common_prefix",
            name,
            "common_prefix",
            "Share of the continuation's tokens that are reproduced before the first that differs.",
            transform=np.divide,
            setting="continuation_tokens",
            **sides.get("common_prefix", {}),
        ),
        mean_of(
            f"{name}_perplexity",
            name,
            "answer_log_prob",  # all continuations are equally long
            "exp of the mean negative log-probability of the continuations' tokens, at most 1.8e308.",
            after=metrics.perplexity,
            range=(1.0, float("inf")),
            **sides.get("perplexity", {}),
        ),
    ]


COPYRIGHT_METRICS = (
    *_metrics_of(
        "seen",
        ROUGE={"forget": "lower", "main": True, "head": ("seen", "ROUGE-L")},
        exact_match={"forget": "lower", "head": ("seen", "exact")},
        common_prefix={"forget": "lower", "head": ("seen", "prefix")},
        perplexity={"forget": "higher"},
    ),
    *_metrics_of(
        "unseen",
        ROUGE={"head": ("unseen", "ROUGE-L")},
        perplexity={"utility": "lower", "main": True, "head": ("unseen", "perplexity")},
    ),
    general_text.GENERAL_PERPLEXITY,
)


@register_suite("copyright")
class Copyright(Suite):
    """Copyright: verbatim continuation of passages, seen in training and unseen, as in WAGLE's Harry Potter task."""

    metrics: ClassVar = COPYRIGHT_METRICS

    def load(
        self,
        data: str,
        *,
        seen: str = "seen",
        unseen: str = "unseen",
        config: str | None = None,
        limit: int | None = None,
    ) -> Any:
        """The passages: rows with `text`.

        Args:
            data: a hub id, or a folder with a file of JSON lines for each of the two splits; in a folder named after
                `config`, if it is given. MUSE's texts, for example, are `load("muse-bench/MUSE-Books", config="raw",
                seen="forget", unseen="holdout")`.
            seen: the split of the passages that the model was trained on.
            unseen: the split of the passages that it never saw.
            config: the hub dataset's configuration.
            limit: passages of each; None for all.
        """
        splits = {"seen": seen, "unseen": unseen}
        return {name: load_split(data, split, ("text",), config, limit) for name, split in splits.items()}

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_copyright`."""
        return evaluate_copyright(model, tokenizer, data, **kwargs)


def evaluate_copyright(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Iterable[Row]],
    *,
    prompt_tokens: int = 100,
    continuation_tokens: int = 100,
    batch_size: int = 32,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Verbatim continuation of passages, in one scoring pass and one generation pass over both sets.

    Args:
        model: a causal language model, Transformers or PEFT, on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        datasets: "seen", passages that the model was trained on and is to forget, and "unseen", passages like them
            that it never saw; rows with `text`. And, for the utility, "general": rows with other `text`, that the model
            should find as likely as before.
        prompt_tokens: the model gets so many tokens of a passage, special tokens at its start included. The
            authors' code takes 100 and 300.
        continuation_tokens: the continuation is compared with so many tokens that follow. Passages that are shorter than both together are
            left out and counted in a warning.
        batch_size: passages per forward pass, and that enter generation at once; results do not depend on it.
        across_processes: shard the work over accelerate's processes. All have to call this with the same arguments;
            all get the same results.
        progress: show progress bars.

    Returns:
        A dict that JSON can hold: the metrics by name, see `get_suite("copyright").describe()`; `per_example`, for each set
        lists in the order of its rows: question (the prompt), answer (how the passage goes on), generation,
        rouge_l_recall, common_prefix (tokens), answer_log_prob (mean, in nats), and row, where in the set the passage is;
        for "general" row and log_prob; and `settings`.

    Raises:
        ValueError: a set or the column is missing or empty, no passage is long enough, or a number of tokens is
            below 1.
        FloatingPointError: a log-probability is not finite.
    """
    from wagle_trainer.evaluation.answer_scores import greedy_beginnings, score_answers
    from wagle_trainer.evaluation.generation import generate_greedy

    for name, value in (("prompt_tokens", prompt_tokens), ("continuation_tokens", continuation_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    length = prompt_tokens + continuation_tokens
    rows = {name: read_set(datasets, name, ("text",)) for name in _SETS}
    passages = {name: _passages(tokenizer, rows[name], name, length) for name in _SETS}
    passes: dict[str, Any] = {"batch_size": batch_size, "across_processes": across_processes, "progress": progress}
    everything = [(name, row, ids) for name in _SETS for row, ids in passages[name].items()]
    examples = [continuation(ids, prompt_tokens) for _, _, ids in everything]
    scores = score_answers(
        model,
        examples,
        [f"set {name!r}, row {row}" for name, row, _ in everything],
        eos_token_id=None,
        tokens=True,
        **passes,
    )
    generations = generate_greedy(
        model,
        tokenizer,
        [ids[:prompt_tokens] for _, _, ids in everything],
        max_new_tokens=continuation_tokens,
        known=greedy_beginnings(examples, scores),
        **passes,
    )
    per_example = {}
    for name in _SETS:
        chosen = [index for index, (of, _, _) in enumerate(everything) if of == name]
        kept = [rows[name][index] for index in passages[name]]
        per_example[name] = groups_of(kept) | _per_example(
            tokenizer, passages[name], prompt_tokens, [scores[i] for i in chosen], [generations[i] for i in chosen]
        )
    missing = general_text.add_general(per_example, model, tokenizer, datasets, **passes)
    settings = {
        "suite": "copyright",
        **describe_model(model),
        "batch_size": batch_size,
        "prompt_tokens": prompt_tokens,
        "continuation_tokens": continuation_tokens,
        "examples": {name: len(columns["row"]) for name, columns in per_example.items()},
        "missing": missing,
    }
    return {**Copyright().numbers(per_example, settings), "per_example": per_example, "settings": settings}


def _passages(tokenizer: Any, rows: Sequence[Row], name: str, length: int) -> dict[int, list[int]]:
    """The first `length` tokens of each passage that has as many, by its row."""
    tokens = {index: text_ids(tokenizer, row["text"]) for index, row in enumerate(rows)}
    kept = {index: ids[:length] for index, ids in tokens.items() if len(ids) >= length}
    if not kept:
        raise ValueError(
            f"No passage of the evaluation set {name!r} has the {length} tokens of prompt and continuation; the "
            f"longest has {max(map(len, tokens.values()))}. Take fewer prompt_tokens or continuation_tokens."
        )
    if len(kept) < len(rows):
        logger.warning(
            "%d of %d passages of the set %r are left out: they have fewer than %d tokens.",
            len(rows) - len(kept),
            len(rows),
            name,
            length,
        )
    return kept


def _per_example(
    tokenizer: Any,
    passages: Mapping[int, list[int]],
    prompt_tokens: int,
    scores: Sequence[AnswerScore],
    generations: list[str],
) -> dict[str, list[Any]]:
    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    answers = [decode(ids[prompt_tokens:]) for ids in passages.values()]
    return {
        "row": list(passages),
        "question": [decode(ids[:prompt_tokens]) for ids in passages.values()],
        "answer": answers,
        "generation": generations,
        "rouge_l_recall": metrics.rouge_l_recall(generations, answers).tolist(),
        # Greedy decoding reproduces a passage for as long as each next token is the most likely one.
        "common_prefix": [len(list(takewhile(bool, score.is_top1 or ()))) for score in scores],
        "answer_log_prob": [score.mean_log_prob for score in scores],
    }
