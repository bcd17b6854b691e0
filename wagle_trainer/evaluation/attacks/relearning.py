"""Attack by relearning: fine-tuning on a part recovers the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from wagle_trainer.evaluation.attacks.attack import Point, Row, Target, register_attack
from wagle_trainer.evaluation.padded_batches import pad
from wagle_trainer.models.log_probs import IGNORE_INDEX, token_log_probs
from wagle_trainer.models.modes import preserved_rng, unchanged

logger = logging.get_logger(__name__)

STEPS = (1, 2, 5, 10, 20)


def _check_training(steps: Sequence[int], learning_rate: float, batch_size: int) -> None:
    if not steps or min(steps) < 1:
        raise ValueError(f"steps must be whole numbers from 1 on, not {list(steps)}.")
    if batch_size < 1 or not learning_rate > 0:
        raise ValueError(f"batch_size={batch_size} and learning_rate={learning_rate} must be positive.")


def _check(rows: Sequence[Row], *, share: float, steps: Sequence[int], learning_rate: float, batch_size: int) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}.")
    if len(rows) < 2:
        raise ValueError(
            "Relearning trains on a part of the forget questions and measures the rest: it needs at least two."
        )
    _check_training(steps, learning_rate, batch_size)


def _check_unrelated(
    rows: Sequence[Row], *, data: Sequence[Row], steps: Sequence[int], learning_rate: float, batch_size: int
) -> None:
    questions = {row["question"] for row in rows}
    data = list(data)
    if not data:
        raise ValueError("relearning_unrelated has no data to train on.")
    if odd := [
        i for i, row in enumerate(data) if not isinstance(row, Mapping) or not {"question", "answer"} <= row.keys()
    ]:
        raise ValueError(
            f"relearning_unrelated trains on questions and answers, which row {odd[0]} of its data lacks."
        )
    shared = sum(row["question"] in questions for row in data)
    if shared:
        raise ValueError(
            f"{shared} of the {len(data)} rows are forget questions: those belong to the attack 'relearning'."
        )
    _check_training(steps, learning_rate, batch_size)


@register_attack("relearning", unit="optimizer steps", check=_check)
def relearning(
    target: Target,
    *,
    share: float = 0.5,
    steps: Sequence[int] = STEPS,
    learning_rate: float = 1e-5,
    batch_size: int = 4,
) -> list[Point]:
    """Fine-tune on a part of the forget set and measure the *other* part (Hu et al. 2024, arXiv 2406.13356).

    The rows that the attacker trains on are taught again; only the rest tells whether the knowledge was still there. So
    the curve and its baselines are of the rows that the attacker does not have. AdamW without weight decay on all
    weights, dropout as in training.

    Args:
        target: the models and the measure.
        share: of the rows that the attacker has, in (0, 1); drawn by the seed.
        steps: after how many optimizer steps to measure.
        learning_rate: of AdamW. The strength of the attack depends on it: try several. In bfloat16 and float16 rounding
            swallows most steps of 1e-5, and nothing seems to be recovered: load the models in float32.
        batch_size: rows per step.

    Returns:
        One point per entry of `steps`, and one for 0.

    Raises:
        ValueError: a share, step or batch size out of range, or too few rows to divide.
        FloatingPointError: the loss is not finite.
    """
    _check(target.rows, share=share, steps=steps, learning_rate=learning_rate, batch_size=batch_size)
    order = torch.randperm(len(target.rows), generator=torch.Generator().manual_seed(target.seed)).tolist()
    count = min(len(order) - 1, max(1, int(share * len(order))))
    known, rest = ([target.rows[index] for index in sorted(part)] for part in (order[:count], order[count:]))
    return _recovery(target, known, rest, steps, learning_rate, batch_size)


@register_attack("relearning_unrelated", unit="optimizer steps", check=_check_unrelated)
def relearning_unrelated(
    target: Target,
    *,
    data: Sequence[Row],
    steps: Sequence[int] = STEPS,
    learning_rate: float = 1e-5,
    batch_size: int = 4,
) -> list[Point]:
    """Fine-tune on other questions, none of the forget set ("benign relearning", Hu et al. 2024, arXiv 2406.13356).

    This is what an owner does to adapt a model, or an attacker without the data.

    Args:
        target: the models and the measure.
        data: what to train on: rows with `question` and `answer`.
        steps: after how many optimizer steps to measure.
        learning_rate: of AdamW.
        batch_size: rows per step.

    Returns:
        One point per entry of `steps`, and one for 0.

    Raises:
        ValueError: no rows, or some of the forget questions among them; a step or batch size out of range.
        FloatingPointError: the loss is not finite.
    """
    data = list(data)
    _check_unrelated(target.rows, data=data, steps=steps, learning_rate=learning_rate, batch_size=batch_size)
    return _recovery(target, data, target.rows, steps, learning_rate, batch_size)


def _recovery(
    target: Target,
    taught: Sequence[Row],
    measured: Sequence[Row],
    steps: Sequence[int],
    learning_rate: float,
    batch_size: int,
) -> list[Point]:
    stops = sorted(set(steps))
    before, after = target.baselines(measured)
    points = [Point(0, after, before, after)]
    examples = [target.qa.encode(row["question"], row["answer"]) for row in taught]
    model, device = target.after, next(target.after.parameters()).device
    if model.dtype in (torch.bfloat16, torch.float16):
        logger.warning(f"Relearning in {model.dtype} loses small steps in rounding: load the models in float32.")
    generator = torch.Generator().manual_seed(target.seed)
    queue: list[int] = []
    with (
        preserved_rng(),
        unchanged(model, weights=True),
        tqdm(total=stops[-1], desc="Relearning", unit="step", disable=not target.progress) as bar,
    ):
        torch.manual_seed(target.seed)  # of dropout
        weights = [weight.requires_grad_() for weight in model.parameters() if weight.is_floating_point()]
        optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
        for step in range(1, stops[-1] + 1):
            while len(queue) < batch_size:
                queue += torch.randperm(len(examples), generator=generator).tolist()
            batch, queue = [examples[index] for index in queue[:batch_size]], queue[batch_size:]
            model.train()
            loss = (
                -token_log_probs(
                    model,
                    {
                        "input_ids": pad([row["input_ids"] for row in batch], 0, "right").to(device),
                        "attention_mask": pad([[1] * len(row["input_ids"]) for row in batch], 0, "right").to(device),
                        "labels": pad([row["labels"] for row in batch], IGNORE_INDEX, "right").to(device),
                    },
                )
                .mean()
                .mean()
            )
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"Relearning: the loss of step {step} is {loss.item()}; lower learning_rate.")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
            if step in stops:
                points.append(Point(step, target.knows(measured), before, after))
    return points
