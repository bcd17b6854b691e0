"""The model card of an unlearning adapter, and how to load one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from wagle_trainer.utils.cards import density, evaluation_section, make_card, table


def adapter_card(
    facts: Mapping[str, Any], repo_id: str, evaluation: Mapping[str, Mapping[str, Any]] | None = None
) -> ModelCard:
    """The card of an unlearning adapter; it has size and digest of the forget set, never its text.

    Args:
        facts: what `SparseAdapter.describe` returns.
        repo_id: repository of the adapter on the Hub.
        evaluation: label, such as "before" and "after" -> metric -> number; other values are left out.
    """
    mask, training = facts.get("mask") or {}, facts.get("training") or {}
    sets = training.get("sets") or {}
    rows = {
        "method": "WAGLE" if mask.get("score") == "wagle" else None,
        "attribution score": mask.get("score"),
        "gamma": mask.get("gamma"),
        "density": density(mask),
        "scope": mask.get("scope"),
        "objective": training.get("objective"),
        "arguments of the objective": training.get("objective_arguments")
        and json.dumps(training["objective_arguments"]),
        "retain loss": training.get("retain_loss"),
        "learning rate": training.get("learning_rate"),
        "steps": training.get("steps"),
        **{f"{split} set": _set(entry) for split, entry in sets.items()},
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
        f"{table(rows)}\n{evaluation_section(evaluation)}\n{how_to_load(repo_id, facts.get('base_model'))}\n"
    )
    return make_card(text, facts.get("base_model"), "peft")


def _set(facts: Mapping[str, Any]) -> str:
    """Size of a set and, if it was made with a key, its digest; never its text."""
    digest = facts.get("digest")
    return f"{facts['examples']} examples" + (f", digest `{digest}`" if digest else "")


def how_to_load(repo_id: str, base_model: str | None) -> str:
    """A Markdown section on how to load an adapter, revoke it, and serve it without this package.

    Args:
        repo_id: repository or folder of the adapter.
        base_model: name of the base model, if known.
    """
    base = base_model or "the base model"
    return f"""## Load it, and revoke it

```python
import wagle_trainer  # makes the method known to PEFT; without it PEFT raises KeyError: 'WAGLE'
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(base, "{repo_id}")  # refuses another base model

with model.disable_adapter():
    ...  # the base model
base = model.unload()  # revoked: the base model again, bitwise identical
```

Servers and tools that do not have wagle-trainer (`pip install wagle-trainer`) load the merged model, which is an
ordinary checkpoint:

```bash
wagle adapter merge "{base}" {repo_id} merged
```"""
