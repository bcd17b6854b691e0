"""The bundled examples, made by seeded generators from invented words: something to forget without a network."""

from __future__ import annotations

from wagle_trainer.utils.lazy_names import lazy_names

_HOMES = {
    "MAX_PEOPLE": "people",
    "QUESTIONS_PER_PERSON": "people",
    "fictional_almanac": "novel",
    "fictional_novel": "novel",
    "fictional_split": "people",
    "fictional_tokenizer": "people",
    "hazards_rows": "hazards",
    "hazards_tokenizer": "hazards",
    "novel_tokenizer": "novel",
    "speakers_rows": "speakers",
    "speakers_tokenizer": "speakers",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
