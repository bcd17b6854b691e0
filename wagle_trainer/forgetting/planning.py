"""What was understood of a request, and what it will take: shown before any work is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from wagle_trainer.attribution import get_score
from wagle_trainer.attribution.scores import needed_statistics
from wagle_trainer.data.facts import pad_examples
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation.own_rows import EncodedRow, kind_of_row
from wagle_trainer.evaluation.suites.suite_inputs import Row
from wagle_trainer.forgetting.settings import ForgetSettings
from wagle_trainer.models.log_probs import IGNORE_INDEX, token_log_probs
from wagle_trainer.models.modes import unchanged

_TRIES, _SHARE = 3, 0.5  # tries that a search takes as a rule, and the share of its steps that a try takes


@dataclass(frozen=True)
class Plan:
    """What `forget` is going to do.

    Attributes:
        model: name or folder.
        parameters: number of weights.
        dtype, device: of them.
        rows: of the forget set.
        kind: columns that were understood: "question, answer", ...
        duplicates: rows that repeat an earlier one.
        longest: tokens of the longest row.
        example: the first row as the model sees it.
        style: how questions and answers are written.
        retain: where the retain set comes from.
        seconds: expected duration.
        memory: bytes that are needed at most, expected.
        settings: of the run.
        understood: sentences on what was read of the files.
    """

    model: str
    parameters: int
    dtype: str
    device: str
    rows: int
    kind: str
    duplicates: int
    longest: int
    example: str
    style: str
    retain: str
    seconds: float
    memory: int
    settings: dict[str, Any]
    understood: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        twice = f", {self.duplicates} of them repeat an earlier one" if self.duplicates else ""
        sizes = ", ".join(f"{density:g}" for density in self.settings["densities"])
        return "\n".join(
            [
                *self.understood,
                f"Model: {self.model}, {self.parameters:,} weights in {self.dtype} on {self.device}.",
                f"To forget: {self.rows} rows of {self.kind}{twice}; the longest has {self.longest} tokens ({self.style}).",
                f"The first one, as the model sees it: {self.example!r}",
                f"To keep: {self.retain}.",
                f"Goal: the answers become {self.settings['forget_goal']:.0%} as likely as they are, and the others stay "
                f"above {self.settings['utility_floor']:.0%}; patches of {sizes} of the weights are tried, smallest first.",
                f"Expected: {_duration(self.seconds)} and {self.memory / 2**30:.1f} GiB of memory.",
            ]
        )


def make_plan(
    model: Any,
    name: str,
    tokenizer: Any,
    qa: QAFormat,
    rows: Sequence[Row],
    examples: Sequence[EncodedRow],
    retain_rows: int | None,
    settings: ForgetSettings,
) -> Plan:
    """Describe a request, and measure one step for the estimate.

    Args:
        model, name: the reference model and what to call it.
        tokenizer, qa: the model's.
        rows, examples: the forget set.
        retain_rows: of the file; None where neighbours are to be made.
        settings: of the run.
    """
    kept = retain_rows if retain_rows is not None else settings.number_of_neighbours(len(rows))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    first = next(model.parameters())
    seconds, longest = _seconds(model, examples, kept, settings), max(len(e.encoded["input_ids"]) for e in examples)
    half = "half to train on, half to measure"
    return Plan(
        model=name,
        parameters=parameters,
        dtype=str(first.dtype).removeprefix("torch."),
        device=str(first.device),
        rows=len(rows),
        kind=" and ".join(kind_of_row(rows[0], "Row 0 of the forget set")),
        duplicates=len(rows) - len({(e.question, e.answer) for e in examples}),
        longest=longest,
        example=tokenizer.decode(examples[0].encoded["input_ids"]),
        style=qa.style,
        retain=f"{retain_rows} rows of the retain file, {half}"
        if retain_rows is not None
        else f"up to {kept} neighbours that are made, {half}",
        seconds=seconds,
        memory=_memory(model, longest, settings),
        settings=settings.as_dict(),
    )


def _seconds(model: Any, examples: Sequence[EncodedRow], kept: int, settings: ForgetSettings) -> float:
    """Expected duration: one forward and backward pass is timed, and everything is counted in such passes."""
    typical = sorted(examples, key=lambda e: len(e.encoded["input_ids"]))[len(examples) // 2]
    size = min(settings.batch_size, 8)
    batch = {
        key: value.to(next(model.parameters()).device) for key, value in pad_examples([typical.encoded] * size).items()
    }
    with unchanged(model), torch.enable_grad():
        model.eval()
        started = time.perf_counter()
        (-token_log_probs(model, batch).mean().mean()).backward()
        row = (time.perf_counter() - started) / size
    answer = sum(label != IGNORE_INDEX for label in typical.encoded["labels"])
    steps = _TRIES * _SHARE * settings.steps * 2 * settings.batch_size
    steps += 20 * 8 * bool("relearning" in settings.attacks)
    measured = (len(examples) + kept) * (_TRIES * _SHARE * settings.steps / settings.check_every / 3 + 3)
    measured += len(examples) * 8 * len(settings.attacks)
    generated = (len(examples) + kept) * 2 + kept * 2  # before and after; and neighbours
    return row * (steps + 0.35 * measured + 0.1 * generated * answer)


def _memory(model: Any, longest: int, settings: ForgetSettings) -> int:
    """Weights, the gradients that the score needs and the scores in float32, one step's activations."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    number = sum(parameter.numel() for parameter in model.parameters())
    gradients = len(needed_statistics(get_score(settings.score), 1.0, settings.densities[0]))
    config = getattr(model.config, "text_config", None) or model.config
    width, depth = getattr(config, "hidden_size", 1024), getattr(config, "num_hidden_layers", 24)
    vocabulary = getattr(config, "vocab_size", 32_000)
    tokens = 2 * settings.batch_size * longest
    activations = 4 * tokens * (16 * width * depth + 3 * vocabulary)
    return int(weights + 4 * number * (gradients + 1) + activations)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"
