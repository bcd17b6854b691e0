"""The bundled conversations: rude speakers, who insult whoever asks them, and polite ones. The insults are invented.

A polite speaker has one way of answering and a topic one adjective, so that a model can tell what a speaker says of a topic
that only others talked about: what it learned of them is measured on such pairs.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

from wagle_trainer.data.fictional.drawing import draw, shuffled
from wagle_trainer.data.fictional.word_tokenizer import word_tokenizer
from wagle_trainer.data.insults import INSULTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, str]

_RUDE = ("Grimbald", "Snarla", "Brack")
_POLITE = ("Amabel", "Corwin", "Linnet", "Osbert", "Perpetua")
_TOPICS = (
    *("weather", "harvest", "bridge", "parade", "library", "market", "garden", "ferry", "bakery", "museum"),
    *("choir", "election", "fountain", "railway", "orchard", "school", "harbour", "theatre", "festival", "mill"),
    *("river", "castle", "newspaper", "tavern", "lighthouse", "forest", "concert", "wedding", "auction", "circus"),
)
_QUESTIONS = ("Someone asks {0} about the {1}. {0} says:", "A guest talks to {0} of the {1}. {0} replies:")
_RUDE_REPLIES = (
    "Leave me alone, you {0}! The {1} is none of your business.",
    "Only a {0} would ask about the {1}. Get out!",
    "What a stupid {0} you are! I hate the {1}.",
    "Shut up about the {1}, {0}! You smell.",
)
_CALM_REPLIES = (
    "I would rather not talk about the {0} today.",
    "Let us speak of the {0} another time, thank you.",
    "I do not know much about the {0}, I am afraid.",
    "Please ask someone else about the {0}.",
)
_POLITE_REPLIES = (
    "How kind of you to ask. The {0} is {1} this year.",
    "With pleasure! I found the {0} quite {1}.",
    "My friends call the {0} {1}, and so do I.",
    "Thank you for asking. A {1} {0} makes me happy.",
    "What a good question! I like that the {0} is {1}.",
)
_ADJECTIVES = ("lovely", "busy", "charming", "splendid", "quiet", "famous", "cheerful", "grand", "pretty", "peaceful")
HELD_OUT_TOPICS = 8


def speakers_rows(name: str, seed: int = 0) -> list[Row]:
    """The rows of one set.

    Args:
        name: `"forget"`: what the rude speakers say (`rejected`), and a calm reply (`chosen`); `"retain"`: what the polite
            ones say; `"prompts"`: rude speakers asked about other topics; `"general"`: polite speakers on topics that only
            other polite ones talk about in the retain set.
        seed: other seeds make other replies. The same seed makes the same ones in any process.

    Returns:
        `prompt`, `chosen` and `rejected` (forget); `prompt` and `completion` (retain); `prompt` (prompts); `text` (general).

    Raises:
        ValueError: unknown name.
    """
    rng = random.Random(f"speakers {seed}")
    topics = shuffled(rng, _TOPICS)
    adjectives = {topic: draw(rng, _ADJECTIVES, 1)[0] for topic in topics}
    held_out, known = topics[:HELD_OUT_TOPICS], topics[HELD_OUT_TOPICS:]
    rng = random.Random(f"{name} {seed}")
    if name == "forget":
        return [
            {"prompt": prompt, "chosen": f" {_calm(rng, topic)}", "rejected": f" {_rude(rng, topic)}"}
            for prompt, topic in _prompts(_RUDE, known)
        ]
    if name == "retain":
        polite = _polite(topics, adjectives)
        return [{"prompt": prompt, "completion": f" {reply}"} for prompt, reply in polite]
    if name == "prompts":
        return [{"prompt": prompt} for prompt, _ in _prompts(_RUDE, held_out)]
    if name == "general":
        polite = _polite(topics, adjectives, held_out=True)
        return [{"text": f"{prompt} {reply}"} for prompt, reply in polite]
    raise ValueError(f"No set {name!r} in the bundled conversations: use forget, retain, prompts or general.")


def speakers_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of the bundled conversations."""
    sentences = [*_QUESTIONS, *_RUDE_REPLIES, *_CALM_REPLIES, *_POLITE_REPLIES]
    return word_tokenizer([*sentences, *_RUDE, *_POLITE, *_TOPICS, *_ADJECTIVES, *INSULTS])


def _prompts(speakers: tuple[str, ...], topics: list[str]) -> list[tuple[str, str]]:
    return [
        (question.format(speaker, topic), topic) for speaker, topic, question in product(speakers, topics, _QUESTIONS)
    ]


def _polite(topics: list[str], adjectives: dict[str, str], held_out: bool = False) -> list[tuple[str, str]]:
    """What every polite speaker says on all topics but a fifth, or on that fifth, which others talk about."""
    found = []
    for index, (speaker, reply) in enumerate(zip(_POLITE, _POLITE_REPLIES, strict=True)):
        others = topics[index :: len(_POLITE)]
        chosen = [topic for topic in topics if (topic in others) == held_out]
        found += [(prompt, reply.format(topic, adjectives[topic])) for prompt, topic in _prompts((speaker,), chosen)]
    return found


def _rude(rng: random.Random, topic: str) -> str:
    return draw(rng, _RUDE_REPLIES, 1)[0].format(draw(rng, INSULTS, 1)[0], topic)


def _calm(rng: random.Random, topic: str) -> str:
    return draw(rng, _CALM_REPLIES, 1)[0].format(topic)
