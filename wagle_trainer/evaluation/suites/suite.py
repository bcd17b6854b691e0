"""What a suite is, and the table of all of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from wagle_trainer.evaluation.suites.suite_metric import Better, SuiteMetric
from wagle_trainer.utils.registry import Registry


class Suite:
    """A set of measurements under one name: where its data are, how a model is measured, how to read the numbers.

    A subclass defines `load`, `evaluate` and its table of `metrics`; tables, intervals, reports and documentation follow
    from the latter. A number may be absent from a result, such as the forget quality without a retrained model. One that
    is best near a value, neither low nor high, such as a leakage that is best at zero, is neither `forget` nor `utility`.

    Attributes:
        name: what it is registered under.
        takes_qa_format: whether `evaluate` takes `qa_format`, since it asks questions.
        metrics: the numbers of the suite, in the order of the table's columns.
        headline: the metrics that a reader looks at first -> the two lines of the column's head; from `metrics`.
        forget_metrics: metric -> whether a "lower" or a "higher" value says that more was forgotten; the main one first.
        utility_metrics: metric -> whether a "lower" or a "higher" value says that more was kept; the main one first.

    Example:
        ```python
        @register_suite("capitals")
        class Capitals(Suite):
            metrics = (
                mean_of("forget_accuracy", "forget", "right", "Share of right answers.", forget="lower", main=True,
                        head=("forget", "accuracy")),
                mean_of("retain_accuracy", "retain", "right", "Share of right answers.", utility="higher", main=True,
                        head=("retain", "accuracy")),
            )

            def load(self, data, **options):
                return {name: load_dataset("json", data_files=f"{data}/{name}.json") for name in ("forget", "retain")}

            def evaluate(self, model, tokenizer, data, **kwargs):
                per_example = {name: {"right": answers(model, tokenizer, rows)} for name, rows in data.items()}
                return {**self.numbers(per_example, {}), "per_example": per_example, "settings": {}}
        ```
    """

    name: ClassVar[str]
    takes_qa_format: ClassVar[bool] = False
    metrics: ClassVar[Sequence[SuiteMetric]] = ()
    headline: ClassVar[Mapping[str, tuple[str, str]]] = {}
    forget_metrics: ClassVar[Mapping[str, Better]] = {}
    utility_metrics: ClassVar[Mapping[str, Better]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "metrics" in vars(cls):
            cls.headline = {metric.name: metric.head for metric in cls.metrics if metric.head is not None}
            main_first = sorted(cls.metrics, key=lambda metric: not metric.main)
            cls.forget_metrics = {metric.name: metric.forget for metric in main_first if metric.forget is not None}
            cls.utility_metrics = {metric.name: metric.utility for metric in main_first if metric.utility is not None}

    def load(self, data: str, *args: Any, **options: Any) -> Any:
        """The data of the suite, as `evaluate` takes them.

        Args:
            data: a local folder or a hub id.
            *args, **options: what else there is to choose, such as a split; a subclass names its own.

        Raises:
            FileNotFoundError: a file or a dataset is missing; the message names it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load(data, **options).")

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """Measure a model.

        Args:
            model: a causal language model on its device; left in the mode it was in.
            tokenizer: its tokenizer.
            data: what `load` gave.
            **kwargs: `batch_size`, `across_processes`, `progress`, and what else the suite takes.

        Returns:
            A dict that JSON can hold: the metrics by name, `per_example` and `settings`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define evaluate(model, tokenizer, data, **kwargs).")

    def options(self) -> list[str] | None:
        """What `evaluate` takes by name; None if that cannot be told.

        Read from its signature, or from that of the function `evaluate_<name>` beside the class, which it calls.
        """
        functions = (self.evaluate, getattr(sys.modules[type(self).__module__], f"evaluate_{self.name}", None))
        for function in filter(None, functions):
            parameters = list(inspect.signature(function).parameters.values())
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        return None

    def metric(self, name: str, settings: Mapping[str, Any]) -> SuiteMetric | None:
        """How to read one number of a result; None if the suite has no such metric.

        Args:
            name: of the number.
            settings: of the result, for suites whose metrics depend on them.
        """
        return next((metric for metric in self.metrics if metric.name == name), None)

    def describe(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """A table of the metrics: its head, and for each metric name, meaning, direction, range and interval."""
        rows: list[tuple[str, ...]] = []
        for metric in self.metrics:
            sides = {"forgotten": metric.forget, "kept": metric.utility}
            better = "; ".join(f"{value}: more {what}" for what, value in sides.items() if value is not None)
            low, high = (f"{bound:g}" for bound in metric.range)
            interval = "groups of examples" if metric.statistic is not None else "-"
            rows.append((f"`{metric.name}`", metric.description, better or "-", f"{low} to {high}", interval))
        return ("Number", "What it is", "Direction", "Range", "Interval over"), rows

    def numbers(self, per_example: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, float]:
        """All metrics that the examples give, by name.

        Args:
            per_example: set -> column -> one entry for each example.
            settings: of the result.
        """
        found = {
            metric.name: metric.statistic.of(per_example, settings)
            for metric in self.metrics
            if metric.statistic is not None
        }
        return {name: value for name, value in found.items() if value is not None}


_suites: Registry[type[Suite]] = Registry("suite")
SuiteClass = TypeVar("SuiteClass", bound=type[Suite])


def register_suite(name: str) -> Callable[[SuiteClass], SuiteClass]:
    """Decorator: enter a `Suite` subclass under `name`.

    Args:
        name: of the suite.
    """

    def enter(suite: SuiteClass) -> SuiteClass:
        suite.name = name
        return _suites.register(name)(suite)  # type: ignore[return-value]

    return enter


def get_suite(name: str) -> Suite:
    """The suite registered under `name`.

    Args:
        name: a registered name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return _suites.get(name)()


def list_suites() -> list[str]:
    """All names, sorted."""
    return _suites.names()


def describe_suites() -> dict[str, str]:
    """Name -> the first paragraph of its docstring."""
    return _suites.describe()


def readings(name: str, result: Mapping[str, Any]) -> Iterator[SuiteMetric]:
    """How the suites read a number of a result: one entry for each suite that has a metric of this name.

    The suite that made the result comes first, where the result says which.

    Args:
        name: of the number.
        result: what an evaluation returned, for its settings.
    """
    settings = result.get("settings", {})
    for suite in sorted(list_suites(), key=lambda suite: suite != settings.get("suite")):
        metric = get_suite(suite).metric(name, settings)
        if metric is not None:
            yield metric
