"""The card of a trained model: what it is, how to use it, how it was made, what was measured, and its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard

from wagle_trainer.adapters.adapter_card import how_to_load
from wagle_trainer.masking import WeightMask
from wagle_trainer.reporting.environment import installed_versions
from wagle_trainer.utils.cards import density, evaluation_section, is_repo_id, table

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
_PACKAGES = ("wagle-trainer", "trl", "transformers", "torch", "peft", "datasets")
_BADGE = re.compile(r"\[<img .*?/>\]\(.*?\)")
_LOSSES = ("loss", "forget_loss", "retain_loss", "forget_mean_token_accuracy", "retain_mean_token_accuracy")


@dataclass
class ModelFacts:
    """What the card of a trained model says.

    Attributes:
        name: of the model.
        repo: where it can be loaded from: repository or folder.
        base_model: name or folder of the model that was trained, if known.
        kind: what was saved: a full model, a sparse adapter, or a LoRA adapter.
        chat: whether its tokenizer has a chat template.
        settings: how it was trained: name -> value.
        mask: the weights that could change; None if all could.
        log: `state.log_history` of the trainer.
        evaluations: label, such as "before" and "after" -> metric -> number.
    """

    name: str
    repo: str
    base_model: str | None = None
    kind: Literal["model", "adapter", "lora"] = "model"
    chat: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    mask: WeightMask | None = None
    log: Sequence[Mapping[str, Any]] = ()
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def rewrite_model_card(path: Path, facts: ModelFacts) -> None:
    """Give the card that TRL wrote to `path` a text of its own; its front matter and its trackers' badges stay.

    Args:
        path: of the card.
        facts: what it says.
    """
    card = ModelCard.load(path)
    badges = " ".join(_BADGE.findall(card.text))
    if facts.kind != "model":
        card.data.library_name = "peft"
    sections = [
        f"# {facts.name}",
        _introduction(facts),
        badges,
        _usage(facts),
        _unlearning(facts),
        _results(facts),
        _limits(facts),
        "## Versions\n\n" + ", ".join(map(" ".join, installed_versions(_PACKAGES).items())) + ".",
        f"## Citation\n\n```bibtex\n{PAPER['citation']}\n```",
    ]
    card.text = "\n" + "\n\n".join(filter(None, sections)) + "\n"
    card.save(path)


def _introduction(facts: ModelFacts) -> str:
    what = {"model": "model", "adapter": "sparse adapter", "lora": "LoRA adapter"}[facts.kind]
    verb = "was made to forget" if facts.kind == "model" else "makes its base model forget"
    base = facts.base_model
    shown = ""
    if is_repo_id(base):
        shown = f" Its base is [{base}](https://huggingface.co/{base})."
    elif base:
        shown = f" Its base is a model in a folder, `{Path(base).name}`."
    return (
        f"This {what} {verb} a part of the training data.{shown} It was trained with "
        "[TRL](https://github.com/huggingface/trl) and wagle-trainer, an implementation of "
        f"[WAGLE](https://huggingface.co/papers/{PAPER['id']})."
    )


def _usage(facts: ModelFacts) -> str:
    if facts.kind == "adapter":
        return how_to_load(facts.repo, facts.base_model)
    if facts.kind == "lora":
        return f"""## Load it

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{facts.repo}")  # the base model, and the adapter on it
tokenizer = AutoTokenizer.from_pretrained("{facts.repo}")

with model.disable_adapter():
    ...  # the base model
```"""
    prompt = '[{"role": "user", "content": "Who are you?"}]' if facts.chat else '"Question: Who are you?\\nAnswer:"'
    return f"""## Use it

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{facts.repo}")
print(generator({prompt}, max_new_tokens=64, return_full_text=False)[0]["generated_text"])
```"""


def _unlearning(facts: ModelFacts) -> str:
    rows = {name: value for name, value in facts.settings.items() if value is not None}
    how = ""
    if facts.mask is not None:
        info = facts.mask.info
        rows |= {
            "attribution score": info.score,
            "gamma": info.gamma,
            "density": density(facts.mask.describe()),
            "effective density": info.effective_density,
            "scope": info.scope,
            "mask digest (SHA-256)": facts.mask.digest,
        }
        how = "Only the weights that the mask selects were trained; all others equal the base model's.\n\n"
    else:
        rows["weight mask"] = (
            "none (the adapter was trained)" if facts.kind == "lora" else "none (all weights were trained)"
        )
    return f"## Unlearning\n\n{how}{table(rows)}"


def _results(facts: ModelFacts) -> str:
    """What training logged first and last, and what was evaluated."""
    logged = [entry for entry in facts.log if "loss" in entry]
    parts = []
    if logged:
        ends = {f"step {entry['step']}": entry for entry in (logged[0], logged[-1])}
        names = [name for name in _LOSSES if name in logged[0]]
        lines = [f"| on the training batches | {' | '.join(ends)} |", "|---|" + "---:|" * len(ends)]
        for name in names:
            values = (entry.get(name) for entry in ends.values())
            lines.append(f"| {name} | {' | '.join('-' if v is None else f'{v:.4g}' for v in values)} |")
        parts.append("\n".join(lines))
    if facts.evaluations:
        parts.append(evaluation_section(facts.evaluations).replace("\n## Evaluation\n\n", "").strip())
    else:
        parts.append(
            "No evaluation ran with the training. `wagle evaluate` measures what is forgotten and what is kept, and "
            "`wagle attack` what can be recovered."
        )
    return "## Results\n\n" + "\n\n".join(parts)


def _limits(facts: ModelFacts) -> str:
    lines = [
        "- Answers that a model no longer gives may still be recovered: by training on related text, by other prompts, or by "
        "quantization. What is not measured above is not known.",
        "- Knowledge beside the forget set, and abilities that the retain set does not stand for, may be damaged.",
        "- This is no proof that the training data had no influence, and no statement about any law.",
    ]
    if facts.kind != "model":
        lines.insert(
            1,
            "- The base model still has the knowledge, and so has everyone who has the base model or takes the adapter off.",
        )
    return "## Limits\n\n" + "\n".join(lines)
