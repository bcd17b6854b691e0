"""FSDP1: parameters are flattened and cut."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor, nn

from wagle_trainer.engines.engine import Engine
from wagle_trainer.engines.sharding import named_parameters, unwrapped_name


class FSDP1(Engine):
    """torch's `FullyShardedDataParallel`. No hook sees a gradient; full weights and gradients are gathered by unit.

    The gradient of a unit is one tensor: with zeros where a parameter has none.
    """

    name = "FSDP1"
    kinds = frozenset({DistributedType.FSDP})
    holds_full_weights = False
    masks_gradients_in_hooks = False
    gathers_weights_in_forward = True
    fills_missing_gradients = True
    supports_compact_optimizer = False
    supports_compact_training = False
    resumes_on_other_process_counts = False
    watched_by = ("test_wrappers_have_the_names_that_we_take_away", "test_fsdp1")

    @classmethod
    def runs(cls, kind: DistributedType, plugin: Any) -> bool:
        """Whether accelerate runs FSDP version 1."""
        return kind in cls.kinds and plugin.fsdp_version == 1

    def check(self, *, has_mask: bool, masks_gradients: bool) -> None:
        """See `Engine.check`; FSDP1 has to keep the parameters' names, too."""
        if not self.plugin.use_orig_params:
            raise ValueError(
                "With FSDP1, weight masks need fsdp_use_orig_params: true; or use FSDP2 (fsdp_version: 2)."
            )
        super().check(has_mask=has_mask, masks_gradients=masks_gradients)

    def scoring_model(self, model: nn.Module, wrapped: Any = None) -> nn.Module:
        """The model with its parameters sharded by rows."""
        from wagle_trainer.engines.scoring_view import FSDP1View

        return FSDP1View(model, list(named_parameters(model)))

    def full_weights(self, model: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        """See `Engine.full_weights`; the innermost unit around the module is gathered."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        around = [
            unit for unit in FullyShardedDataParallel.fsdp_modules(model) if any(module is m for m in unit.modules())
        ]
        unit = min(around, key=lambda unit: len(list(unit.modules())))
        with FullyShardedDataParallel.summon_full_params(unit, writeback=False, recurse=False):
            return {unwrapped_name(name): weight.detach().clone() for name, weight in module.named_parameters()}

    def gathered_root(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gather the weights of the outermost unit, which `generate` does not run forward."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        if not isinstance(model, FullyShardedDataParallel):
            return nullcontext()
        return FullyShardedDataParallel.summon_full_params(model, writeback=False, recurse=False)
