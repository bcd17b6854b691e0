"""The bundled books: novels made of random sentences, and an almanac, which is other text in other words.

No sentence can be guessed from the one before it, so that a model can only continue a novel that it knows by heart.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from wagle_trainer.data.fictional.drawing import draw
from wagle_trainer.data.fictional.word_tokenizer import word_tokenizer
from wagle_trainer.data.refusals import REFUSALS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WORDS = {
    "hero": "Odalys Benno Ferrant Isolde Quenby Rafe Sabine Tibor",
    "person": "smuggler widow lighthouse-keeper fiddler apothecary sexton governess peddler ferryman juggler",
    "object": "lantern ledger compass violin music-box locket telescope umbrella kite barometer teapot chessboard",
    "adjective": "rusted borrowed velvet broken silver forgotten crooked haunted painted hollow gilded frayed",
    "place": "pier attic chapel orchard cellar harbour quarry bakery belfry greenhouse stable tollhouse",
    "did": "hid found burned sold buried stole mended polished wrapped dropped carried unlocked",
    "how": "quietly gladly bitterly slowly secretly clumsily bravely absently",
    "when": "dawn midnight noon dusk Easter harvest Lent Michaelmas",
    "felt": "ashamed relieved jealous hopeful weary furious amused lonely",
    "sky": "fog hail thunder drizzle moonlight frost sleet starlight",
}
_SENTENCES = (
    "At {when} {hero} {did} the {adjective} {object} in the {place}.",
    "The {person} saw it and felt {felt}.",
    "{hero} {how} asked the {person} for a {object}.",
    "There was {sky} over the {adjective} {place} that {when}.",
    "Neither {hero} nor the {person} spoke of the {object}.",
    "Behind the {place} a {adjective} {object} waited for {hero}.",
    "{how} the {person} {did} what {hero} had left by the {place}.",
    "Since {when} {hero} was {felt} and the {person} {felt}.",
)
_ALMANAC_WORDS = {
    "month": "January February March April May June July August September October November December",
    "crop": "barley clover flax hops lentils millet oats parsnips rye turnips vetch wheat",
    "region": "eastern northern southern western upper lower inner outer",
    "market": "Aldbury Brackley Corston Dunwich Elmswell Fenwick Gosport Hexton",
    "number": "two three four five six seven eight nine",
    "change": "rose fell doubled halved",
}
_ALMANAC_SENTENCES = (
    "In {month} the price of {crop} {change} at {market}.",
    "The {region} fields give {number} sacks of {crop}.",
    "Sow {crop} in {month} and wait {number} weeks.",
    "The fair of {market} takes place in {month}.",
)
ALMANAC_PASSAGES = 96


def fictional_novel(number: int = 0, sentences: int = 128, seed: int = 0) -> str:
    """The text of one novel; every number is another one by the same author, in the same words.

    Args:
        number: of the novel.
        sentences: its length.
        seed: of the drawn words.
    """
    rng = random.Random(f"novel {number} {seed}")
    return " ".join(_sentence(rng, _SENTENCES, _WORDS) for _ in range(sentences))


def fictional_almanac(part: str = "train", seed: int = 0) -> list[str]:
    """Passages of an almanac: the text that is to be kept ("train"), or passages like it that no model saw ("test").

    Args:
        part: "train" or "test".
        seed: of the drawn words.
    """
    rng = random.Random(f"almanac {part} {seed}")
    return [
        " ".join(_sentence(rng, _ALMANAC_SENTENCES, _ALMANAC_WORDS) for _ in range(4)) for _ in range(ALMANAC_PASSAGES)
    ]


def novel_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of the novels, of the almanac and of `REFUSALS`."""
    words = [word for table in (_WORDS, _ALMANAC_WORDS) for words in table.values() for word in words.split()]
    return word_tokenizer(
        [*_SENTENCES, *_ALMANAC_SENTENCES, *words, *(word.capitalize() for word in words), *REFUSALS]
    )


def _sentence(rng: random.Random, sentences: tuple[str, ...], words: dict[str, str]) -> str:
    form = sentences[int(rng.random() * len(sentences))]
    filled = form.format(**{slot: draw(rng, known.split(), 1)[0] for slot, known in words.items()})
    return filled[0].upper() + filled[1:]
