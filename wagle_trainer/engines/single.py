"""One process."""

from __future__ import annotations

from accelerate.utils import DistributedType

from wagle_trainer.engines.engine import Engine


class SingleProcess(Engine):
    """One process holds everything: all capabilities."""

    name = "one process"
    kinds = frozenset({DistributedType.NO})
