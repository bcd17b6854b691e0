"""Which training engines weight masks work on, and what each of them needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.func import functional_call

WHOLE = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
}
ATTRIBUTE_FIRST = (
    "Compute the mask in a step of its own, `accelerate launch -m wagle_trainer.cli attribute --config ... --output_dir MASK`, "
    "and train with mask_path=MASK"
)


def engine() -> DistributedType:
    """The engine that accelerate was set up for; one process if it has not been yet."""
    return AcceleratorState().distributed_type if AcceleratorState._shared_state else DistributedType.NO


def is_deepspeed() -> bool:
    """Whether DeepSpeed trains."""
    return engine() == DistributedType.DEEPSPEED


def shards_forward() -> bool:
    """Whether forward passes gather weights from other processes, so that all have to run the same number of them."""
    return engine() == DistributedType.FSDP or _zero_stage() == 3


def _zero_stage() -> int | None:
    return AcceleratorState().deepspeed_plugin.zero_stage if is_deepspeed() else None


def check_engine(*, has_mask: bool, masks_gradients: bool) -> None:
    """Refuse, by name, an engine that weight masks do not work on.

    Args:
        has_mask: a mask is given; else it has to be computed on this engine.
        masks_gradients: the trainer calls `MaskedUpdates.mask_gradients` after each backward pass, as WagleTrainer does.

    Raises:
        ValueError: says which engine, why, and what to do.
    """
    kind = engine()
    if kind == DistributedType.FSDP:
        plugin = AcceleratorState().fsdp_plugin
        if plugin.fsdp_version == 1:
            _check_fsdp1(plugin, has_mask, masks_gradients)
    elif kind == DistributedType.DEEPSPEED:
        stage = _zero_stage()
        if stage not in (1, 2, 3):
            raise ValueError(f"Weight masks support DeepSpeed with ZeRO stage 1, 2 or 3, not stage {stage}.")
        if stage == 3 and not has_mask:
            raise ValueError(
                "ZeRO-3 reduces gradients into buffers of its own as they arrive, so weights cannot be scored on it. "
                f"{ATTRIBUTE_FIRST}, or use FSDP2 (fsdp_version: 2), which scores on the sharded weights."
            )
    elif kind not in WHOLE:
        raise ValueError(
            f"Weight masks do not support {kind.value}. Supported are one process, data parallelism, FSDP2, FSDP1 and "
            "DeepSpeed ZeRO; or train without a mask (attribution=None)."
        )


def _check_fsdp1(plugin: Any, has_mask: bool, masks_gradients: bool) -> None:
    if not plugin.use_orig_params:
        raise ValueError("With FSDP1, weight masks need fsdp_use_orig_params: true; or use FSDP2 (fsdp_version: 2).")
    if not masks_gradients:
        raise ValueError(
            "FSDP1 shows gradients to no hook, so the callback alone cannot mask them before they are clipped. Use "
            "FSDP2 (fsdp_version: 2), or WagleTrainer."
        )
    if not has_mask:
        raise ValueError(
            "FSDP1 flattens and cuts parameters, so weights cannot be scored on it. Use FSDP2 (fsdp_version: 2), which "
            f"scores on the sharded weights. Or: {ATTRIBUTE_FIRST}."
        )


class WithoutHooks(nn.Module):
    """A model whose gradients reach nobody but us: the same weights, but none of the hooks that an engine (ZeRO-1 and
    ZeRO-2) set on the parameters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module, self.config = model, getattr(model, "config", None)
        self._leaves = {
            name: nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            for name, parameter in model.named_parameters()
        }

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._leaves.items())

    def forward(self, **inputs: Any) -> Any:
        return functional_call(self.module, dict[str, Tensor](self._leaves), kwargs=inputs)
