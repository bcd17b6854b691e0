"""Forget and retain sets: files of one's own, TOFU, MUSE, WMDP, public facts, the bundled examples; tokens of questions.

`read_examples("forget.csv")` reads a file, a folder or a hub id of nearly any shape, in memory. It returns `Examples`:
`rows` (a `datasets.Dataset` under known names: `question` and `answer`, `messages`, `text`, ...), `kind`, `read`, `ignored`,
`notes`, `num_groups`, `report(tokenizer)` (what was understood, as text), `summary(tokenizer)` (the same for JSON), and
`training_set(qa_format)`, the rows in a TRL format.
"""

from __future__ import annotations

from wagle_trainer.utils.lazy_names import lazy_names

_HOMES = {
    "Examples": "reading",
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
    "read_examples": "reading",
    "refusal_for": "refusals",
    "retain_split_for": "tofu",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
