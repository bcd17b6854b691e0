"""The selection that all masks are compared with."""

import math

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def top():
    """top(scores, density) -> the masks of a stable sort: descending score, ties to the earliest tensor and then to the
    lowest index."""

    def select(scores, density):
        flat = torch.cat([score.flatten() for score in scores.values()]).numpy()
        chosen = torch.zeros(flat.size, dtype=torch.bool)
        chosen[torch.from_numpy(np.argsort(-flat, kind="stable")[: math.floor(density * flat.size)].copy())] = True
        parts = chosen.split([score.numel() for score in scores.values()])
        return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}

    return select
