"""Sections that a trained model's card gets: how it was made to forget, and how to load its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from wagle_trainer.adapters.adapter_card import how_to_load
from wagle_trainer.masking import WeightMask
from wagle_trainer.utils.cards import density, table

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
    """Append a section "Unlearning" to the model card at `path`: objective and mask."""
    card = ModelCard.load(path)
    rows = {name: value for name, value in settings.items() if value is not None}
    if mask is None:
        rows["weight mask"] = "none (all weights were trained)"
    else:
        info = mask.info
        rows |= {
            "attribution score": info.score,
            "gamma": info.gamma,
            "density": density(mask.describe()),
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
        f"\n\n## Unlearning\n\nThis model was made to forget a part of its training data.{how}\n\n{table(rows)}\n"
    )
    card.save(path)


def add_adapter_section(path: Path, repo_id: str, base_model: str | None) -> None:
    """Append a section to the model card at `path` on how to load the adapter, and how to revoke it."""
    card = ModelCard.load(path)
    card.text += f"\n\n{how_to_load(repo_id, base_model)}\n"
    card.save(path)
