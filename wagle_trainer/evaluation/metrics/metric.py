"""What a metric is, and the table of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from wagle_trainer.utils.registry import Registry

Function = TypeVar("Function", bound=Callable[..., Any])
# Type of the entries of an input.
Entry = Literal["number", "numbers", "flag", "flags", "text"]
ANY = (float("-inf"), float("inf"))
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Metric:
    """A function of what a model gave, and how to read it.

    Attributes:
        name: what it is registered under.
        function: takes the inputs in their order, then options by keyword.
        inputs: name of each input -> type of its entries, and what an entry is.
        each: the function takes one entry of each input and returns one number; otherwise it takes all entries.
        range: lowest and highest value.
        more_known: which values say that the model knows more; None where neither does.
        of_response: inputs of one `Response`, in their order, or None where the response lacks one of them. With it, the
            metric is computed for every set of a suite that asks for it.
        source: BibTeX.
    """

    name: str
    function: Callable[..., Any]
    inputs: Mapping[str, tuple[Entry, str]]
    each: bool = False
    range: tuple[float, float] = ANY
    more_known: Literal["lower", "higher"] | None = None
    of_response: Callable[[Any], tuple[Any, ...] | None] | None = None
    source: str = ""

    @property
    def description(self) -> str:
        """The first paragraph of the function's docstring, in one line."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    def of_responses(self, responses: list[Any]) -> list[float] | None:
        """The metric of each response; None where a response lacks an input.

        Args:
            responses: one `Response` for each example.
        """
        found = [self.of_response(response) for response in responses] if self.of_response else []
        inputs = [row for row in found if row is not None]
        if not inputs or len(inputs) < len(found):
            return None
        if self.each:
            return [float(self.function(*row)) for row in inputs]
        return [float(value) for value in self.function(*map(list, zip(*inputs, strict=True)))]


_metrics: Registry[Callable[..., Any]] = Registry("metric")


def register_metric(
    name: str,
    *,
    inputs: Mapping[str, tuple[Entry, str]],
    each: bool = False,
    range: tuple[float, float] = ANY,
    more_known: Literal["lower", "higher"] | None = None,
    of_response: Callable[[Any], tuple[Any, ...] | None] | None = None,
    source: str = "",
) -> Callable[[Function], Function]:
    """Decorator: enter a function as a `Metric` under `name`.

    `load_metric(name)` then gives it as a module of `evaluate`, and a suite computes it where its table names it.

    Args:
        name: of the metric.
        inputs, each, range, more_known, of_response, source: see `Metric`.

    Example:
        ```python
        @register_metric(
            "answer_length",
            inputs={"predictions": ("text", "a generated answer")},
            each=True,
            range=(0, float("inf")),
            of_response=lambda response: (response.generation,),
        )
        def answer_length(prediction):
            '''Number of words of an answer.'''
            return len(prediction.split())
        ```
    """

    def enter(function: Function) -> Function:
        metric = Metric(name, function, dict(inputs), each, range, more_known, of_response, source)
        function.metric = metric  # type: ignore[attr-defined]
        return _metrics.register(name)(function)  # type: ignore[return-value]

    return enter


def get_metric(name: str) -> Metric:
    """The metric registered under `name`.

    Args:
        name: a registered name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return _metrics.get(name).metric  # type: ignore[attr-defined]


def list_metrics() -> list[str]:
    """Names of all metrics, sorted; `load_metric` takes them."""
    return _metrics.names()
