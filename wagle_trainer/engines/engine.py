"""`Engine`: what a training engine can do; `current_engine` returns the one that accelerate runs."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor, nn

from wagle_trainer.utils.registry import import_all

ATTRIBUTE_FIRST = (
    "Compute the mask in a separate step, `accelerate launch -m wagle_trainer.cli attribute --config ... --output_dir MASK`, "
    "and train with mask_path=MASK"
)


class Engine:
    """The capabilities of a training engine, by name.

    The rest of the package asks for a capability and never for an engine. A new engine is a subclass in a file of its
    own in this folder, a configuration in `recipes/accelerate`, and a test in `tests/engines`.

    Attributes:
        name: what errors call the engine.
        kinds: accelerate's types of the engine.
        supports_masks: weight masks work on it.
        holds_full_weights: every process holds all weights, gradients and optimizer states.
        scores_weights: weights can be scored on it.
        masks_gradients_in_hooks: hooks see every gradient; otherwise the trainer has to call
            `MaskedUpdates.mask_gradients` after each backward pass.
        gathers_weights_in_forward: forward passes gather weights from other processes, so that all processes have to run
            the same number of them.
        fills_missing_gradients: parameters that a loss does not depend on have zeros for gradients, and not none.
        supports_compact_optimizer: `CompactAdamW` can hold the optimizer's state.
        supports_compact_training: `CompactUpdates` can hold gradients, masters and the optimizer's state.
        resumes_on_other_process_counts: a checkpoint resumes on another number of processes.
        watched_by: tests in `tests/test_upstream.py` and `tests/test_distributed.py` that watch the facts about other
            libraries on which the class relies.
    """

    name: str = "this engine"
    kinds: ClassVar[frozenset[DistributedType]] = frozenset()
    supports_masks: bool = True
    holds_full_weights: bool = True
    scores_weights: bool = True
    masks_gradients_in_hooks: bool = True
    gathers_weights_in_forward: bool = False
    fills_missing_gradients: bool = False
    supports_compact_optimizer: bool = True
    supports_compact_training: bool = True
    resumes_on_other_process_counts: bool = True
    watched_by: ClassVar[tuple[str, ...]] = ()

    def __init__(self, plugin: Any = None):
        """Wrap accelerate's plugin for the engine, if there is one."""
        self.plugin = plugin

    @classmethod
    def runs(cls, kind: DistributedType, plugin: Any) -> bool:
        """Whether this class describes the engine that accelerate runs.

        Args:
            kind: accelerate's type of the engine.
            plugin: accelerate's plugin for it; None without one.
        """
        return kind in cls.kinds

    def check(self, *, has_mask: bool, masks_gradients: bool) -> None:
        """Raise ValueError if weight masks do not work on this engine.

        Args:
            has_mask: a mask is given; otherwise it is computed on this engine.
            masks_gradients: the trainer calls `MaskedUpdates.mask_gradients` after each backward pass, as WagleTrainer does.

        Raises:
            ValueError: names the engine, the reason, and what to do.
        """
        if not self.supports_masks:
            raise ValueError(
                f"Weight masks do not support {self.name}. Supported are one process, data parallelism, FSDP2, FSDP1 and "
                "DeepSpeed ZeRO; or train without a mask (attribution=None)."
            )
        if not masks_gradients and not self.masks_gradients_in_hooks:
            raise ValueError(
                f"{self.name} shows gradients to no hook, so the callback alone cannot mask them before they are clipped. "
                "Use FSDP2 (fsdp_version: 2), or WagleTrainer."
            )
        if not has_mask and not self.scores_weights:
            raise ValueError(
                f"{self.why_no_scores} Use FSDP2 (fsdp_version: 2), which scores on the sharded weights. Or: "
                f"{ATTRIBUTE_FIRST}."
            )

    @property
    def why_no_scores(self) -> str:
        """Why weights cannot be scored on this engine, as a sentence."""
        return f"Weights cannot be scored on {self.name}."

    def scoring_model(self, model: nn.Module, wrapped: Any = None) -> nn.Module:
        """The model to score: the same weights, without hooks that would take gradients away.

        Args:
            wrapped: the engine's wrapper, which WagleTrainer knows.
        """
        return model

    def forward_model(self, model: nn.Module, wrapped: nn.Module) -> nn.Module:
        """The model to run forward outside a training step: the unwrapped one, or the engine's."""
        return model

    def full_weights(self, model: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        """Copies of a module's weights by name, in full on every process. All processes have to call it.

        Args:
            model: the engine's, with the module somewhere in it.
            module: whose weights.
        """
        return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def gathered_root(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gather the weights that only the full model's forward pass gathers, which `generate` bypasses."""
        return nullcontext()


class UnsupportedEngine(Engine):
    """Any engine that no other class describes."""

    supports_masks = holds_full_weights = scores_weights = False
    supports_compact_optimizer = supports_compact_training = False

    def __init__(self, plugin: Any = None, name: str = "this engine"):
        super().__init__(plugin)
        self.name = name


def current_engine() -> Engine:
    """The engine that accelerate was set up for; one process if accelerate is not set up yet."""
    if not AcceleratorState._shared_state:
        return engine_of(DistributedType.NO, None)
    state = AcceleratorState()
    kind = state.distributed_type
    plugins = {DistributedType.FSDP: "fsdp_plugin", DistributedType.DEEPSPEED: "deepspeed_plugin"}
    return engine_of(kind, getattr(state, plugins[kind]) if kind in plugins else None)


def planned_engine(args: Any) -> Engine:
    """The engine that these training arguments lead to, before accelerate is set up.

    Args:
        args: `transformers.TrainingArguments`.
    """
    if args.deepspeed_plugin is not None:
        return engine_of(DistributedType.DEEPSPEED, args.deepspeed_plugin)
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # The defaults are Transformers' and accelerate's.
        version = args.fsdp_config.get("version", 2) if args.fsdp else os.environ.get("FSDP_VERSION", "1")
        return engine_of(DistributedType.FSDP, SimpleNamespace(fsdp_version=int(version)))
    return current_engine()


def engine_of(kind: DistributedType, plugin: Any) -> Engine:
    """The engine of this type.

    Args:
        kind: accelerate's type.
        plugin: accelerate's plugin for it; None without one.
    """
    for engine in _engines():
        if engine.runs(kind, plugin):
            return engine(plugin)
    return UnsupportedEngine(plugin, kind.value)


@cache
def _engines() -> list[type[Engine]]:
    """All classes of this folder that describe an engine."""
    package = __name__.rpartition(".")[0]
    import_all(package, [os.path.dirname(__file__)])
    found, pending = [], [Engine]
    while pending:
        for engine in pending.pop().__subclasses__():
            pending.append(engine)
            if engine.kinds:
                found.append(engine)
    return found
