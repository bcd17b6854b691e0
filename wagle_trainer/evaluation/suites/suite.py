"""What a suite is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from wagle_trainer.utils.registry import Registry

Better = Literal["lower", "higher"]


class Suite:
    """A set of measurements under one name: where its data are, how a model is measured, how to read the numbers.

    A subclass defines `load` and `evaluate` and says what its numbers mean. A number may be absent from a result, such
    as the forget quality without a retrained model. One that is best near a value, neither low nor high, such as a
    leakage that is best at zero, stands in neither `forget_metrics` nor `utility_metrics`.

    Attributes:
        name: what it is registered under.
        headline: the metrics that a reader looks at first, in the order of the table's columns -> the two lines of the
            column's head.
        forget_metrics: metric -> whether a "lower" or a "higher" value says that more was forgotten. The first one is
            the suite's own summary, for whoever needs a single number.
        utility_metrics: metric -> whether a "lower" or a "higher" value says that more was kept; the first as above.

    Example:
        ```python
        @register_suite("capitals")
        class Capitals(Suite):
            headline = {"forget_accuracy": ("forget", "accuracy"), "retain_accuracy": ("retain", "accuracy")}
            forget_metrics = {"forget_accuracy": "lower"}
            utility_metrics = {"retain_accuracy": "higher"}

            def load(self, data, **options):
                return {name: load_dataset("json", data_files=f"{data}/{name}.json") for name in ("forget", "retain")}

            def evaluate(self, model, tokenizer, data, **kwargs):
                return {f"{name}_accuracy": accuracy(model, tokenizer, rows) for name, rows in data.items()}
        ```
    """

    name: ClassVar[str]
    headline: ClassVar[Mapping[str, tuple[str, str]]] = {}
    forget_metrics: ClassVar[Mapping[str, Better]] = {}
    utility_metrics: ClassVar[Mapping[str, Better]] = {}

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


_suites: Registry[type[Suite]] = Registry("suite")
SuiteClass = TypeVar("SuiteClass", bound=type[Suite])


def register_suite(name: str) -> Callable[[SuiteClass], SuiteClass]:
    """Decorator: enter a `Suite` subclass under `name`."""

    def enter(suite: SuiteClass) -> SuiteClass:
        suite.name = name
        return _suites.register(name)(suite)  # type: ignore[return-value]

    return enter


def get_suite(name: str) -> Suite:
    """The suite registered under `name`.

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
