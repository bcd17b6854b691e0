"""The model card of a weight mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from wagle_trainer.utils.cards import density, evaluation_section, make_card, table


def mask_card(
    facts: Mapping[str, Any], repo_id: str, evaluation: Mapping[str, Mapping[str, Any]] | None = None
) -> ModelCard:
    """The card of a weight mask.

    Args:
        facts: what `WeightMask.describe` returns.
        repo_id: repository of the mask on the Hub.
        evaluation: label, such as "before" and "after" -> metric -> number; other values are left out.
    """
    rows = {
        "attribution score": facts.get("score"),
        "gamma": facts.get("gamma"),
        "density": density(facts),
        "effective density": facts.get("effective_density"),
        "scope": facts.get("scope"),
        **{f"{split} set": _set(facts, split) for split in ("forget", "retain")},
        "base model": facts.get("base_model"),
        "mask digest (SHA-256)": facts["digest"],
    }
    text = (
        "# Weight mask\n\nThe weights of the base model that unlearning may change.\n\n"
        f"{table(rows)}\n{evaluation_section(evaluation)}\n"
        f'## Load it\n\n```python\nfrom wagle_trainer import WagleTrainer\n\nWagleTrainer(..., mask="{repo_id}")\n```\n'
    )
    return make_card(text, facts.get("base_model"), "wagle-trainer")


def _set(facts: Mapping[str, Any], split: str) -> str | None:
    """Size of a set and, if it was made with a key, its digest; never its text."""
    examples, digest = facts.get(f"{split}_examples"), facts.get(f"{split}_digest")
    if not examples:
        return None
    return f"{examples} examples" + (f", digest {digest}" if digest else "")
