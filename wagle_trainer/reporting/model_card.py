"""Model cards: how a model was made to forget, what an adapter or a mask is, how to use it and how to take it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from wagle_trainer.masking import WeightMask

TAGS = ["wagle", "unlearning"]
PAPER = {
    "title": "WAGLE: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models",
    "id": "2410.17509",
    "citation": """@inproceedings{jia2024wagle,
    title     = {{WAGLE: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models}},
    author    = {Jia, Jinghan and Liu, Jiancheng and Zhang, Yihua and Ram, Parikshit and Baracaldo, Nathalie and Liu, Sijia},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2024},
    eprint    = {2410.17509},
}""",
}


def add_unlearning_section(path: Path, settings: dict[str, Any], mask: WeightMask | None) -> None:
    """Append a section "Unlearning" to the model card at `path`: objective, mask, and the paper's address."""
    card = ModelCard.load(path)
    rows = {name: value for name, value in settings.items() if value is not None}
    if mask is None:
        rows["weight mask"] = "none (all weights were trained)"
    else:
        info = mask.info
        rows |= {
            "attribution score": info.score,
            "gamma": info.gamma,
            "density": f"{mask.density:.4g} ({mask.num_selected:,} of {mask.num_weights:,} weights)",
            "effective density": info.effective_density,
            "scope": info.scope,
            "mask digest (SHA-256)": mask.digest,
        }
    how = (
        ""
        if mask is None
        else " Only the weights that its mask selects were trained; all others equal the base model's."
    )
    card.text += (
        f"\n\n## Unlearning\n\nThis model was made to forget a part of its training data.{how}\n\n{_table(rows)}\n"
    )
    card.save(path)


def add_adapter_section(path: Path, repo_id: str, base_model: str | None) -> None:
    """Append a section to the model card at `path` on how to load the adapter beside it, and how to take it back."""
    card = ModelCard.load(path)
    card.text += f"\n\n{_how_to_load(repo_id, base_model)}\n"
    card.save(path)


def adapter_card(
    facts: Mapping[str, Any], repo_id: str, evaluation: Mapping[str, Mapping[str, Any]] | None = None
) -> ModelCard:
    """The card of an unlearning adapter. Of the forget set it tells size and digest, never the text.

    Args:
        facts: what `SparseAdapter.describe` says.
        repo_id: where the adapter is going to be.
        evaluation: label, such as "before" and "after" -> metric -> number; all else in it is left out.
    """
    mask, training = facts.get("mask") or {}, facts.get("training") or {}
    sets = training.get("sets") or {}
    rows = {
        "method": "WAGLE" if mask.get("score") == "wagle" else None,
        "attribution score": mask.get("score"),
        "gamma": mask.get("gamma"),
        "density": _density(mask),
        "scope": mask.get("scope"),
        "objective": training.get("objective"),
        "arguments of the objective": training.get("objective_arguments")
        and json.dumps(training["objective_arguments"]),
        "retain loss": training.get("retain_loss"),
        "learning rate": training.get("learning_rate"),
        "steps": training.get("steps"),
        **{f"{role} set": f"{s['examples']} examples, digest `{s['digest']}`" for role, s in sets.items()},
        "composed of": ", ".join(f"`{part['digest'][:12]}`" for part in training.get("composed_of", [])),
        "overlaps": training.get("combine"),
        "base model": facts.get("base_model"),
        "base model digest (SHA-256, tensors touched)": facts["base_digest"],
        "values": f"{facts['num_values']:,} in {facts['num_tensors']} tensors",
        "adapter digest (SHA-256)": facts["digest"],
        "mask digest (SHA-256)": mask.get("digest"),
    }
    text = (
        "# Unlearning adapter\n\nNew values for some weights of the base model, which make it forget a part of its training "
        "data. All other weights stay the base model's.\n\n"
        f"{_table(rows)}\n{_evaluation(evaluation)}\n{_how_to_load(repo_id, facts.get('base_model'))}\n"
    )
    return _card(text, facts.get("base_model"), "peft")


def _set(facts: Mapping[str, Any], role: str) -> str | None:
    """A set by size and hash: never its text."""
    examples, digest = facts.get(f"{role}_examples"), facts.get(f"{role}_digest")
    if not examples:
        return None
    return f"{examples} examples" + (f", SHA-256 {digest}" if digest else "")


def mask_card(
    facts: Mapping[str, Any], repo_id: str, evaluation: Mapping[str, Mapping[str, Any]] | None = None
) -> ModelCard:
    """The card of a weight mask.

    Args:
        facts: what `WeightMask.describe` says.
        repo_id, evaluation: see `adapter_card`.
    """
    rows = {
        "attribution score": facts.get("score"),
        "gamma": facts.get("gamma"),
        "density": _density(facts),
        "effective density": facts.get("effective_density"),
        "scope": facts.get("scope"),
        **{f"{role} set": _set(facts, role) for role in ("forget", "retain")},
        "base model": facts.get("base_model"),
        "mask digest (SHA-256)": facts["digest"],
    }
    text = (
        "# Weight mask\n\nThe weights of the base model that unlearning may change.\n\n"
        f"{_table(rows)}\n{_evaluation(evaluation)}\n"
        f'## Load it\n\n```python\nfrom wagle_trainer import WagleTrainer\n\nWagleTrainer(..., mask="{repo_id}")\n```\n'
    )
    return _card(text, facts.get("base_model"), "wagle-trainer")


def _card(text: str, base_model: str | None, library: str) -> ModelCard:
    data = ModelCardData(base_model=base_model if _is_repo_id(base_model) else None, library_name=library, tags=TAGS)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _is_repo_id(base_model: str | None) -> bool:
    """Not a folder, whose path says nothing to others, and which the Hub refuses."""
    try:
        validate_repo_id(base_model or "")
    except HFValidationError:
        return False
    return not Path(base_model or "").exists()


def _density(mask: Mapping[str, Any]) -> str | None:
    if mask.get("density") is None:
        return None
    return f"{mask['density']:.4g} ({mask['num_selected']:,} of {mask['num_weights']:,} weights)"


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None and value != ""]
    return "\n".join(["| | |", "|---|---|", *lines])


def _evaluation(results: Mapping[str, Mapping[str, Any]] | None) -> str:
    """A table with a column for each evaluation, and a row for each number that they have."""
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


def _how_to_load(repo_id: str, base_model: str | None) -> str:
    return f"""## Load it, and take it back

```python
import wagle_trainer  # makes the method known to PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base_model or "the base model"}", dtype="auto")
model = PeftModel.from_pretrained(base, "{repo_id}")  # refuses another base model

with model.disable_adapter():
    ...  # the base model
base = model.unload()  # revoked: the base model again, bit for bit
```"""
