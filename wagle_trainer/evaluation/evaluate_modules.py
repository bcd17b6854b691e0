"""The metrics as modules of Hugging Face `evaluate`, made from their registrations; nothing is fetched.

`evaluate.load` takes the path of this very file and the name of a metric:

    evaluate.load(wagle_trainer.evaluation.evaluate_modules.__file__, "rouge_l_recall")

It copies the file and takes the first metric class that it finds in the copy: `RegisteredMetric`.
"""

from __future__ import annotations

import inspect
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from wagle_trainer.evaluation.metrics import get_metric
from wagle_trainer.evaluation.metrics.citations import OPEN_UNLEARNING

_TYPES = {
    "number": Value("float64"),
    "numbers": Sequence(Value("float64")),
    "flag": Value("int64"),
    "flags": Sequence(Value("bool")),
    "text": Value("string"),
}


class RegisteredMetric(evaluate.Metric):
    """A registered metric as `evaluate` sees it; which one, `evaluate` hands over as `config_name`."""

    def _info(self) -> evaluate.MetricInfo:
        self.metric = get_metric(self.config_name)
        inputs = "".join(f"    {name}: {text}.\n" for name, (_, text) in self.metric.inputs.items())
        mean = "" if self.metric.each else ", or their mean where the function gives one for each entry"
        return evaluate.MetricInfo(
            description=self.metric.description,
            citation=self.metric.source or OPEN_UNLEARNING,
            inputs_description=f"Args:\n{inputs}\nReturns:\n    `{self.metric.name}`: the number{mean}.\n\n"
            f"The function, with its options:\n\n{inspect.getdoc(self.metric.function)}",
            features=Features({name: _TYPES[entry] for name, (entry, _) in self.metric.inputs.items()}),
        )

    @property
    def name(self) -> str:
        """The metric's, not that of the file."""
        return self.config_name

    def compute(self, **inputs: Any) -> dict[str, Any] | None:
        """The metric of the given inputs, or without any of those that `add_batch` was given.

        Returns:
            The number under the metric's name, and under "per_example" a list if there is one for each entry.

        Raises:
            ValueError: an input is missing or empty, or they differ in length.
        """
        given = [name for name in self.metric.inputs if inputs.get(name) is not None]
        if not given and self.writer is None:
            raise ValueError(f"{self.name} needs {' and '.join(self.metric.inputs)}, and has been given nothing.")
        return super().compute(**inputs)

    def add_batch(self, **inputs: Any) -> None:
        """Add entries, for a `compute()` without inputs.

        Raises:
            ValueError: an input is missing or empty, or they differ in length.
        """
        needed = list(self.metric.inputs)
        missing = [name for name in needed if inputs.get(name) is None]
        if missing:
            raise ValueError(f"{self.name} needs {' and '.join(needed)}; {' and '.join(missing)} is missing.")
        lengths = {name: len(inputs[name]) for name in needed}
        if len(set(lengths.values())) > 1:
            found = " and ".join(f"{count} {name}" for name, count in lengths.items())
            raise ValueError(f"{self.name} needs inputs of the same length, but was given {found}.")
        if 0 in lengths.values():
            raise ValueError(f"{self.name} was given empty {' and '.join(lengths)}: there is nothing to measure.")
        super().add_batch(**inputs)

    def _compute(self, **inputs: Any) -> dict[str, Any]:
        columns = [inputs.pop(name) for name in self.metric.inputs]
        if self.metric.each:
            numbers = [self.metric.function(*row, **inputs) for row in zip(*columns, strict=True)]
        else:
            numbers = self.metric.function(*columns, **inputs)
        values = np.asarray(numbers, dtype=np.float64)
        if values.ndim == 0:
            return {self.name: values.item()}
        return {self.name: values.mean().item(), "per_example": values.tolist()}


def load_metric(name: str, **kwargs: Any) -> Any:
    """One of the metrics as an `evaluate.Metric`, without a network.

    The same as `evaluate.load` with the path of this file, except that inputs are kept in memory, not on disk.

    Args:
        name: one of `list_metrics()`.
        kwargs: further arguments of `evaluate.load`, such as `experiment_id`.

    Raises:
        ValueError: unknown name; the message lists the known ones.

    Example:
        ```python
        rouge = load_metric("rouge_l_recall")
        rouge.compute(predictions=["He was born in Osk."], references=["In Osk."])["rouge_l_recall"]
        ```
    """
    get_metric(name)  # refuses an unknown name
    return evaluate.load(__file__, name, **{"keep_in_memory": True, **kwargs})
