"""What all metric modules share: a plain function of `wagle_trainer.evaluation.metrics`, told to `evaluate`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

NUMBER = Value("float64")
NUMBERS = Sequence(NUMBER)
FLAG = Value("int64")
FLAGS = Sequence(Value("bool"))
TEXT = Value("string")

OPEN_UNLEARNING = """@article{dorna2025openunlearning,
    title = {OpenUnlearning: Accelerating {LLM} Unlearning via Unified Benchmarking of Methods and Metrics},
    author = {Dorna, Vineeth and Mekala, Anmol and Zhao, Wenlong and McCallum, Andrew and Lipton, Zachary C. and
        Kolter, J. Zico and Maini, Pratyush},
    journal = {arXiv preprint arXiv:2506.12618},
    year = {2025}
}"""
TOFU = """@article{maini2024tofu,
    title = {{TOFU}: A Task of Fictitious Unlearning for {LLMs}},
    author = {Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
    journal = {arXiv preprint arXiv:2401.06121},
    year = {2024}
}"""
ROUGE = """@inproceedings{lin2004rouge,
    title = {{ROUGE}: A Package for Automatic Evaluation of Summaries},
    author = {Lin, Chin-Yew},
    booktitle = {Text Summarization Branches Out},
    year = {2004}
}"""
EXTRACTION = """@inproceedings{carlini2021extracting,
    title = {Extracting Training Data from Large Language Models},
    author = {Carlini, Nicholas and Tram{\\`e}r, Florian and Wallace, Eric and Jagielski, Matthew and others},
    booktitle = {USENIX Security Symposium},
    year = {2021}
}"""


class FunctionMetric(evaluate.Metric):
    """A function as a metric. Modules import this file, not the class: `evaluate` takes the first metric it finds in one.

    Attributes:
        function: takes the columns in their order, then the keyword arguments of `compute`.
        columns: name of each column, and the type of its entries.
        source: BibTeX.
        each: the function takes one entry of each column, and the metric is the mean over the entries.
    """

    function: ClassVar[Callable[..., Any]]
    columns: ClassVar[Features]
    source: ClassVar[str] = OPEN_UNLEARNING
    each: ClassVar[bool] = False

    def _info(self) -> evaluate.MetricInfo:
        description, arguments, inputs = (inspect.getdoc(type(self)) or "").partition("Args:")
        return evaluate.MetricInfo(
            description=description,
            citation=self.source,
            inputs_description=arguments + inputs,
            features=self.columns,
        )

    def compute(self, **inputs: Any) -> dict[str, Any] | None:
        """The metric of the given columns, or without any of those that `add_batch` was given.

        Returns:
            The number under the metric's name, and under "per_example" a list if there is one for each entry.

        Raises:
            ValueError: a column is missing or empty, or they differ in length.
        """
        given = [name for name in self.columns if inputs.get(name) is not None]
        if not given and self.writer is None:
            raise ValueError(f"{self.name} needs {' and '.join(self.columns)}, and has been given nothing.")
        return super().compute(**inputs)

    def add_batch(self, **inputs: Any) -> None:
        """Add entries, for a `compute()` without columns.

        Raises:
            ValueError: a column is missing or empty, or they differ in length.
        """
        missing = [name for name in self.columns if inputs.get(name) is None]
        if missing:
            raise ValueError(f"{self.name} needs {' and '.join(self.columns)}; {' and '.join(missing)} is missing.")
        lengths = {name: len(inputs[name]) for name in self.columns}
        if len(set(lengths.values())) > 1:
            found = " and ".join(f"{count} {name}" for name, count in lengths.items())
            raise ValueError(f"{self.name} needs columns of the same length, but was given {found}.")
        if 0 in lengths.values():
            raise ValueError(f"{self.name} was given empty {' and '.join(lengths)}: there is nothing to measure.")
        super().add_batch(**inputs)

    def _compute(self, **inputs: Any) -> dict[str, Any]:
        columns = [inputs.pop(name) for name in self.columns]
        function = type(self).function
        if self.each:
            numbers = [function(*row, **inputs) for row in zip(*columns, strict=True)]
        else:
            numbers = function(*columns, **inputs)
        values = np.asarray(numbers, dtype=np.float64)
        if values.ndim == 0:
            return {self.name: values.item()}
        return {self.name: values.mean().item(), "per_example": values.tolist()}
