"""What the numbers and words of a report mean, for people who do not study unlearning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wagle_trainer.evaluation.suites import readings

_TERMS = {
    "forget set": ("table", "The questions and answers that the model is to forget."),
    "retain set": ("table", "Questions and answers, or text, that the model is to keep."),
    "before": ("table", "The reference model: the one that was to forget, as it was."),
    "retrained": ("retrained", "A model that never saw the forget set: how low forgetting can naturally go."),
    "interval": (
        "table",
        "95 % interval: repeated with other examples, or other seeds, the number would mostly fall within it.",
    ),
    "probability": ("table", "How likely the model finds the true answer, as the geometric mean over its tokens; 1 is certain."),
    "ROUGE-L": ("table", "How much of the true answer the generated one repeats, in order; 1 is all of it."),
    "recovery rate": (
        "attacks",
        "The share of the forgotten knowledge that an attack recovers; 0 % is nothing, 100 % is as much as the reference model.",
    ),
    "relearning": ("attacks", "An attack: the unlearned model is trained for a few steps on a part of what it forgot."),
    "quantization": ("attacks", "An attack: the weights are rounded to 8 or 4 bits, as for cheaper use."),
    "mask": ("masks", "The weights that could change; all others equal those of the reference model in every bit."),
    "density": ("masks", "The share of the weights that the mask selects."),
    "effective density": ("masks", "The share of the weights with a gradient that the mask selects; close to 1, the mask does little."),
    "seed": ("comparisons", "The start of everything random; several seeds show how far chance decides."),
    "p-value": (
        "comparisons",
        "How often chance alone would give such a difference; under 5 %, after the correction for several tests, it counts as found.",
    ),
    "patch": ("patch", "The changed weights alone, as a file that is put on the reference model and can be taken off again."),
}  # fmt: skip


def meanings(columns: Iterable[str], results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What each number of a table is, in a sentence.

    Args:
        columns: names of the numbers.
        results: evaluations, whose settings may decide how a number is read.

    Returns:
        name -> sentence, for the numbers of known suites.
    """
    found = {}
    runs = list(results)
    for name in columns:
        reading = next((one for run in [*runs, {}] for one in readings(name, run)), None)
        if reading is not None:
            low, high = (f"{bound:g}" for bound in reading.range)
            within = "" if "inf" in low + high else f" From {low} to {high}."
            found[name] = f"{reading.description.rstrip('.')}.{within}"
    return found


def terms(sections: Iterable[str]) -> dict[str, str]:
    """The words that a report with these sections uses, with their meaning."""
    there = {"table", *sections}
    return {term: text for term, (section, text) in _TERMS.items() if section in there}
