"""DeepSpeed's ZeRO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.func import functional_call

from wagle_trainer.engines.engine import Engine
from wagle_trainer.engines.sharding import named_parameters


class DeepSpeedZero(Engine):
    """DeepSpeed with ZeRO. Stages 1 and 2 shard gradients and optimizer states, stage 3 shards weights, too.

    The optimizer holds all parameters of a group in a row, with zeros where one has no gradient.
    """

    name = "DeepSpeed"
    kinds = frozenset({DistributedType.DEEPSPEED})
    holds_full_weights = False
    fills_missing_gradients = True
    supports_compact_optimizer = False
    supports_compact_training = False
    resumes_on_other_process_counts = False
    watched_by = (
        "test_deepspeed_is_where_we_look_for_it",
        "test_zero_1_and_2",
        "test_zero_3",
    )

    def __init__(self, plugin: Any):
        super().__init__(plugin)
        self.name = f"DeepSpeed ZeRO-{plugin.zero_stage}"
        self.gathers_weights_in_forward = plugin.zero_stage == 3

    def check(self, *, has_mask: bool, masks_gradients: bool) -> None:
        """See `Engine.check`; DeepSpeed without ZeRO is refused, too."""
        if self.plugin.zero_stage not in (1, 2, 3):
            raise ValueError(
                f"Weight masks support DeepSpeed with ZeRO stage 1, 2 or 3, not stage {self.plugin.zero_stage}."
            )
        # Stage 3 scores by the engine's own passes, which only WagleTrainer can run.
        self.scores_weights = self.plugin.zero_stage != 3 or masks_gradients
        super().check(has_mask=has_mask, masks_gradients=masks_gradients)

    @property
    def why_no_scores(self) -> str:
        """Why weights cannot be scored, as a sentence."""
        return (
            "ZeRO-3 reduces gradients into its buffers as they arrive, so the callback alone cannot score weights on it; "
            "WagleTrainer can."
        )

    def scoring_model(self, model: nn.Module, wrapped: Any = None) -> nn.Module:
        """The model without ZeRO's hooks, which take gradients away; of stage 3, with its parameters sharded by rows."""
        if self.plugin.zero_stage == 3:
            from wagle_trainer.engines.scoring_view import Zero3View

            return Zero3View(wrapped, list(named_parameters(model)))
        return WithoutHooks(model)

    def full_weights(self, model: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        """See `Engine.full_weights`."""
        if self.plugin.zero_stage != 3:
            return super().full_weights(model, module)
        from deepspeed import zero

        with zero.GatheredParameters(list(module.parameters())):
            return super().full_weights(model, module)

    def forward_model(self, model: nn.Module, wrapped: nn.Module) -> nn.Module:
        """DeepSpeed's wrapper, which gathers the weights of stage 3."""
        return wrapped


class WithoutHooks(nn.Module):
    """A model that shares another one's weights, without the hooks that an engine sets on its parameters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module, self.config = model, getattr(model, "config", None)
        self._leaves = {
            name: nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            for name, parameter in model.named_parameters()
        }

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The shared weights by name; their gradients are this module's alone."""
        return iter(self._leaves.items())

    def forward(self, **inputs: Any) -> Any:
        """The model's forward pass."""
        return functional_call(self.module, dict[str, Tensor](self._leaves), kwargs=inputs)
