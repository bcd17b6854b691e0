"""Forget and retain sets: TOFU, MUSE, WMDP, public facts, the bundled examples; how questions become tokens."""

from __future__ import annotations

from wagle_trainer.utils.lazy_names import lazy_names

_HOMES = {
    "QAFormat": "qa_format",
    "REFUSALS": "refusals",
    "all_facts": "facts",
    "fact_relations": "facts",
    "fictional_split": "fictional",
    "fictional_tokenizer": "fictional",
    "load_facts": "facts",
    "load_muse": "muse",
    "load_muse_evaluation": "muse",
    "load_tofu": "tofu",
    "load_tofu_evaluation": "tofu",
    "load_wmdp": "wmdp",
    "load_wmdp_questions": "wmdp",
    "refusal_for": "refusals",
    "retain_split_for": "tofu",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
