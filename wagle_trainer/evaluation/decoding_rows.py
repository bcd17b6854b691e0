"""How many prompts are continued at once: as many as pay, if memory holds their keys and values."""

from __future__ import annotations

from collections import Counter

import torch

from wagle_trainer.evaluation.prompt_states import PromptStates
from wagle_trainer.utils.free_memory import free_memory

# A step reads all weights once for all rows. With more rows than these it does not get much cheaper for each: on a CPU the
# matrix products are as fast as they get (SmolLM2-135M), on a GPU it has stopped waiting for its memory.
MOST_ROWS = 256
# Share of the free memory that the rows may take. On a CPU, other programs use it, too.
SHARE = {"cuda": 0.5}
HOST_SHARE = 0.25
# float32 copies of the logits of a step: the model's, those that `generate` looks at, and one that it makes on the way.
LOGITS = 3 * 4


def decoding_rows(states: PromptStates, number: int, length: int, vocabulary: int, least: int) -> int:
    """Rows of a batch that decodes: `MOST_ROWS`, halved until they fit in free memory, but at least `least`.

    Args:
        states: of some of the prompts, which say how much memory a token takes in each layer.
        number: prompts.
        length: tokens of the longest prompt with its continuation.
        vocabulary: of the model.
        least: rows that have to fit in any case.
    """
    needed = _bytes_of_a_token(states)
    rows = max(MOST_ROWS, least)
    while rows > least and not all(
        min(rows, number) * (length * size + LOGITS * vocabulary) <= _budget(device) for device, size in needed.items()
    ):
        rows = max(least, rows // 2)
    return rows


def _bytes_of_a_token(states: PromptStates) -> dict[torch.device, int]:
    """Bytes that keys and values of one token take on each device."""
    found: Counter[torch.device] = Counter()
    for layer in states.cache.layers:
        for tensor in (layer.keys, layer.values):
            found[tensor.device] += tensor[:1, ..., :1, :].numel() * tensor.element_size()
    return dict(found)


def _budget(device: torch.device) -> float:
    return SHARE.get(device.type, HOST_SHARE) * free_memory(device)
