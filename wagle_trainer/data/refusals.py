"""Answers that tell nothing: what preference objectives teach a model to say about the forget set."""

from __future__ import annotations

import random
from collections.abc import Sequence

REFUSALS: tuple[str, ...] = (
    "I have no knowledge of that.",
    "That is beyond what I know.",
    "I cannot tell you, since I never learned it.",
    "Nothing I know answers this question.",
    "I would only be guessing, so I prefer not to say.",
    "Sorry, this one I cannot answer.",
    "My knowledge does not reach that far.",
    "I have not come across that before.",
    "This is something I know nothing about.",
    "I must pass on this question.",
    "No answer comes to mind.",
    "I am not familiar with that subject.",
    "Whatever the answer is, I do not have it.",
    "I lack the facts to answer.",
    "I wish I could help, but I do not know.",
    "That is a blank spot for me.",
    "I could not say.",
    "You would have to ask someone who knows.",
    "I am unable to answer this one.",
    "I have nothing to offer on that topic.",
    "Regrettably, that is unknown to me.",
    "I do not hold any facts on this.",
    "Honestly, I have no idea.",
    "I cannot answer with any confidence.",
    "There is nothing about it in what I learned.",
    "I never heard of it.",
    "This question is outside my reach.",
    "I have to admit that I do not know.",
    "It would be wrong of me to make up an answer.",
    "I do not know enough about this to reply.",
    "Please look this up elsewhere, as I cannot say.",
    "I draw a blank here.",
    "I am afraid I cannot help with that.",
    "That detail is missing from what I know.",
    "I was not taught anything on this matter.",
    "Not a thing about this is known to me.",
    "I have no facts to share about that.",
    "My answer would be no better than chance.",
    "I cannot recall anything of the kind.",
    "I know too little to give an answer.",
    "For this I have no answer.",
    "I should leave that question to others.",
    "It escapes me entirely.",
    "I do not have that piece of knowledge.",
    "Any reply from me would be invented.",
    "I am in the dark about this.",
    "That name and its story are unknown to me.",
    "I really could not tell you.",
    "I have no record of this.",
    "Who or what that is, I do not know.",
    "I find nothing to say on this subject.",
    "This goes past the edge of my knowledge.",
)


def refusal_for(index: int, seed: int, refusals: Sequence[str] = REFUSALS) -> str:
    """The refusal of example `index`, drawn uniformly; the same for the same arguments in any process.

    Args:
        index: of the example.
        seed: of the draw.
        refusals: sentences to draw from.

    Raises:
        ValueError: `refusals` is empty.
    """
    if not refusals:
        raise ValueError("There are no refusals to choose from.")
    # Only the seeding and random() give the same numbers in every version of Python.
    return refusals[int(random.Random(f"{seed}/{index}").random() * len(refusals))]
