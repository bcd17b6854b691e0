"""`ComparisonArguments`: what is compared, and by what rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from wagle_trainer.attribution import get_score
from wagle_trainer.config import WagleConfig
from wagle_trainer.evaluation import Suite, get_attack
from wagle_trainer.losses import get_loss, list_losses
from wagle_trainer.reporting.result_tables import FILES

# What differs from run to run by the comparison's own lists.
_VARIED = ("seed", "learning_rate", "density", "attribution", "loss_type", "output_dir")


@dataclass
class ComparisonArguments:
    """What is compared, and by what rule.

    Attributes:
        suite: how the task's numbers are read; set by `read_by`.

    Raises:
        ValueError: a value that is unknown, out of range, or there twice; an empty list.
    """

    objectives: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Objectives that are compared; by default loss_type alone. 'all': all but altpo, which needs other answers "
            "of yours, and those that you registered."
        },
    )
    objective_settings: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Training options of single objectives as JSON, such as \'{"rmu": {"loss_kwargs": {"layer": 2}}}\'.'
        },
    )
    scores: list[str] = field(
        default_factory=lambda: ["wagle", "random", "magnitude", "gradient", "snip"],
        metadata={"help": "Scores whose masks are compared; the others are tested against random. 'none': no masks."},
    )
    densities: list[float] = field(
        default_factory=lambda: [0.05, 0.2, 0.8], metadata={"help": "Densities of every score's masks."}
    )
    dense: bool = field(default=True, metadata={"help": "Also train without a mask, and test against that."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={
            "help": "Of the order of the examples and the random mask; with the bundled example also of the reference "
            "model and of the retrained one."
        },
    )
    learning_rates: list[float] = field(
        default_factory=list, metadata={"help": "Every variant runs with each; by default with learning_rate alone."}
    )
    forget_metric: str = field(
        default="auto", metadata={"help": "The metric that must reach the goal; 'auto': the suite's first."}
    )
    utility_metric: str = field(default="auto", metadata={"help": "The metric to keep; 'auto': the suite's first."})
    forget_goal: float | None = field(
        default=None, metadata={"help": "Goal of the forget metric; by default it comes from forget_share."}
    )
    forget_share: float = field(
        default=0.9,
        metadata={
            "help": "Goal as a share of the forget metric's distance from the reference to the retrained model."
        },
    )
    attacks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Attacks, such as relearning and quantization, on every variant that reaches the forget goal and, for "
            "comparison, on the retrained model. For this, those variants are trained once more."
        },
    )
    relearning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the relearning attacks."})
    processes: int | None = field(
        default=None, metadata={"help": "Runs side by side; by default 2 on CPUs and 1 on a GPU."}
    )
    formats: list[str] = field(
        default_factory=lambda: ["csv", "markdown", "latex"],
        metadata={"help": "Files that the table is written to, beside the report: csv, markdown, latex."},
    )

    def __post_init__(self) -> None:
        if self.objectives == ["all"]:
            self.objectives = [name for name in list_losses() if _runs_on_any_data(get_loss(name))]
        if self.scores == ["none"]:
            self.scores = []
        for name in ("objectives", "scores", "densities", "seeds", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice: {values}.")
            if not values and name in ("densities", "seeds"):
                raise ValueError(f"{name} is empty: give at least one.")
        if not self.scores and not self.dense:
            raise ValueError("scores is empty, and dense is off: give at least one score, or train without a mask.")
        for score in self.scores:
            get_score(score)
        for objective in self.objectives:
            get_loss(objective)
        for attack in self.attacks:
            get_attack(attack)
        if not all(0 < density <= 1 for density in self.densities):
            raise ValueError(f"densities must be in (0, 1], got {self.densities}.")
        unknown = [name for name in self.formats if name not in FILES]
        if unknown:
            raise ValueError(f"formats has {', '.join(unknown)}; known are {', '.join(FILES)}.")
        self.objective_settings = self._read_settings()
        self.suite: Suite

    def _read_settings(self) -> dict[str, Any]:
        settings: Any = self.objective_settings or {}
        if isinstance(settings, str):
            try:
                settings = json.loads(settings)
            except ValueError as error:
                raise ValueError(f"objective_settings is not JSON ({error}): {settings}") from error
        if not isinstance(settings, Mapping) or not all(isinstance(some, Mapping) for some in settings.values()):
            raise ValueError(
                f"objective_settings must be a mapping of objectives to training options, got {settings!r}."
            )
        known = {one.name for one in fields(WagleConfig)} - set(_VARIED)
        for objective, some in settings.items():
            get_loss(objective)
            if wrong := [name for name in some if name not in known]:
                raise ValueError(
                    f"objective_settings of {objective!r} has {', '.join(wrong)}, which no training option is called, or which "
                    "the comparison varies itself."
                )
        return {objective: dict(some) for objective, some in settings.items()}

    def read_by(self, suite: Suite, utility_metric: str | None = None) -> None:
        """Take the metrics of a suite for those that are "auto".

        Args:
            suite: of the task.
            utility_metric: the task's metric of what is kept; None for the suite's first.

        Raises:
            ValueError: the suite has no such metric.
        """
        self.suite = suite
        self.forget_metric = _metric(self.forget_metric, suite.forget_metrics)
        if self.utility_metric == "auto":
            self.utility_metric = utility_metric or "auto"
        self.utility_metric = _metric(self.utility_metric, suite.utility_metrics)


def _runs_on_any_data(loss: Any) -> bool:
    """Whether a loss is the package's, and runs on forget sets without chosen answers."""
    own = loss.__module__.startswith("wagle_trainer.")
    return own and (loss.accepts_refusals or "chosen" not in loss.needs)


def _metric(name: str, known: Mapping[str, Any]) -> str:
    """The metric `name`; the suite's first for "auto".

    Raises:
        ValueError: the suite has no such metric.
    """
    if name == "auto":
        return next(iter(known))
    if name not in known:
        raise ValueError(f"The suite has no metric {name!r} for this. It has: {', '.join(known)}.")
    return name
