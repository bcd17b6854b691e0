"""FSDP2: parameters are `DTensor`s, sharded by rows."""

from __future__ import annotations

from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor, nn

from wagle_trainer.engines.engine import Engine
from wagle_trainer.engines.sharding import gather, local_part, named_parameters


class FSDP2(Engine):
    """torch's `fully_shard`. Hooks on accumulated gradients see the local rows, so that masks and scores work on them."""

    name = "FSDP2"
    kinds = frozenset({DistributedType.FSDP})
    holds_full_weights = False
    gathers_weights_in_forward = True
    supports_compact_optimizer = False
    watched_by = ("test_fsdp2",)

    @classmethod
    def runs(cls, kind: DistributedType, plugin: Any) -> bool:
        """Whether accelerate runs FSDP version 2."""
        return kind in cls.kinds and plugin.fsdp_version != 1

    def full_weights(self, model: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        """See `Engine.full_weights`."""
        named_parameters(model)  # lays out as shards what a forward pass has left gathered
        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
        return {name: gather(local_part(weight), weight).clone() for name, weight in weights.items()}
