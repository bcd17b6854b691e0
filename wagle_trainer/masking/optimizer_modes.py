"""Optimizers that move weights between steps: schedule-free ones in `eval()` and `train()`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from torch.optim import Optimizer

MODES = ("eval", "train")


def guard_modes(optimizer: Optimizer, guard: Callable[[], AbstractContextManager[None]]) -> Callable[[], None]:
    """Run the optimizer's `eval` and `train`, if it has them, within a context.

    They stay guarded when training ends, since a trainer evaluates afterwards, too; the next step without a mask ends it.

    Args:
        guard: makes the context.

    Returns:
        a function that says that training has ended.
    """
    wrappers = {}
    for name in MODES:
        method = getattr(optimizer, name, None)
        if callable(method):
            # Without the guard of an earlier mask. `inspect.unwrap` would take off decorators such as torch.no_grad, too.
            wrappers[name] = _within(guard, optimizer, getattr(method, "unguarded", method))
            setattr(optimizer, name, wrappers[name])

    def remove(*_: Any) -> None:
        for handle in handles:
            handle.remove()
        for name, wrapper in wrappers.items():
            if optimizer.__dict__.get(name) is wrapper:  # else another mask guards it by now
                delattr(optimizer, name)

    handles: list[Any] = []

    def end() -> None:
        if wrappers:
            handles.append(optimizer.register_step_pre_hook(remove))

    return end


def _within(
    guard: Callable[[], AbstractContextManager[None]], optimizer: Optimizer, method: Callable[..., Any]
) -> Callable[..., Any]:
    mode = method.__name__ == "train"

    @wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if all(group.get("train_mode") is mode for group in optimizer.param_groups):
            return method(*args, **kwargs)  # nothing to do: trainers call `train` in every step
        with guard():
            return method(*args, **kwargs)

    guarded.unguarded = method  # type: ignore[attr-defined]
    return guarded
