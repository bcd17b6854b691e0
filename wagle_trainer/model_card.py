"""The part of a model card that says how a model was made to forget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from wagle_trainer.masking import WeightMask

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
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    how = (
        ""
        if mask is None
        else " Only the weights that its mask selects were trained; all others equal the base model's."
    )
    card.text += f"\n\n## Unlearning\n\nThis model was made to forget a part of its training data.{how}\n\n| | |\n|---|---|\n{table}\n"
    card.save(path)
