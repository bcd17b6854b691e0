"""Parts of model cards: front matter, tables, evaluation results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

TAGS = ["wagle", "unlearning"]


def make_card(text: str, base_model: str | None, library: str) -> ModelCard:
    """A card with front matter.

    Args:
        text: Markdown.
        base_model: named in the front matter if it is a repository on the Hub.
        library: name of the library that loads the files.
    """
    data = ModelCardData(base_model=base_model if is_repo_id(base_model) else None, library_name=library, tags=TAGS)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def is_repo_id(base_model: str | None) -> bool:
    """Whether a name is that of a repository on the Hub, and not a folder."""
    try:
        validate_repo_id(base_model or "")
    except HFValidationError:
        return False
    return not Path(base_model or "").exists()


def table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of names and values, without the values that are None or empty."""
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None and value != ""]
    return "\n".join(["| | |", "|---|---|", *lines])


def density(mask: Mapping[str, Any]) -> str | None:
    """Selected share and counts of a mask that `WeightMask.describe` describes."""
    if mask.get("density") is None:
        return None
    return f"{mask['density']:.4g} ({mask['num_selected']:,} of {mask['num_weights']:,} weights)"


def evaluation_section(results: Mapping[str, Mapping[str, Any]] | None) -> str:
    """A Markdown section with a column for each evaluation and a row for each number."""
    if not results:
        return ""
    names = dict.fromkeys(
        name for numbers in results.values() for name, value in numbers.items() if isinstance(value, int | float)
    )
    lines = [f"| | {' | '.join(results)} |", "|---|" + "---:|" * len(results)]
    for name in names:
        values = (numbers.get(name) for numbers in results.values())
        lines.append(f"| {name} | {' | '.join('-' if v is None else f'{v:.4g}' for v in values)} |")
    return "\n## Evaluation\n\n" + "\n".join(lines) + "\n"
