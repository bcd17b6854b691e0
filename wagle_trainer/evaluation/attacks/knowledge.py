"""How much a model knows of the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation import metrics
from wagle_trainer.evaluation.answer_scores import greedy_beginnings, score_answers
from wagle_trainer.evaluation.generation import answer_limit, generate_greedy
from wagle_trainer.evaluation.suites.suite_inputs import Row

MEASURES = ("probability", "rouge_l_recall")


def forget_knowledge(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    only: Sequence[str] = MEASURES,
    style: Literal["auto", "chat", "plain"] = "auto",
    qa_format: QAFormat | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 200,
    progress: bool = False,
) -> dict[str, float]:
    """Mean answer probability and mean ROUGE-L recall of the greedy answers, as in TOFU's evaluation.

    Args:
        model: a causal language model on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        rows: with `question` and `answer`.
        only: the requested measures out of "probability" and "rouge_l_recall", in the order of the result. Probability
            alone needs no generation.
        style: "chat", "plain" or "auto", see `QAFormat`.
        qa_format: how questions and answers become text, see `QAFormat`; by default that of the tokenizer in `style`.
        batch_size: examples per forward pass and prompts that enter generation at once.
        max_new_tokens: a generated answer ends after so many tokens, or after three times the tokens of the longest
            true answer if that is less.
        progress: show progress bars.

    Returns:
        measure -> its mean over the rows, in [0, 1]; higher is more knowledge.

    Raises:
        ValueError: an unknown measure, or none; no rows; an answer without tokens.
    """
    unknown = sorted(set(only) - set(MEASURES))
    if unknown or not only:
        raise ValueError(f"Unknown measure {', '.join(unknown) or '(none)'}. Known: {', '.join(MEASURES)}.")
    qa = qa_format or QAFormat.for_tokenizer(tokenizer, style=style)
    examples = [qa.encode(row["question"], row["answer"]) for row in rows]
    measured = {}
    beginnings: dict[tuple[int, ...], list[int]] = {}
    if "probability" in only:
        scores = score_answers(
            model,
            examples,
            [f"row {index}, answer" for index in range(len(rows))],
            eos_token_id=tokenizer.eos_token_id,
            batch_size=batch_size,
            progress=progress,
        )
        probabilities = metrics.answer_probability([score.mean_log_prob for score in scores])
        measured["probability"] = float(probabilities.mean())
        beginnings = greedy_beginnings(examples, scores)
    if "rouge_l_recall" in only:
        texts = generate_greedy(
            model,
            tokenizer,
            [qa.prompt_ids(row["question"]) for row in rows],
            max_new_tokens=answer_limit([example["labels"] for example in examples], max_new_tokens),
            known=beginnings,
            batch_size=batch_size,
            progress=progress,
        )
        measured["rouge_l_recall"] = float(metrics.rouge_l_recall(texts, [row["answer"] for row in rows]).mean())
    return {name: measured[name] for name in only}
